"""A pack: adapters of one base in one repository, each in adapters/NAME.

dualign publish runs/law/sft runs/code/sft you/pack

Each adapter is staged and checked as one that is published alone. Then they have to agree: one base
at one commit, one tokenizer, one chat template. The tokenizer and the card of the whole stand on top.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from dualign.checkpoints.patterns import has_whole_tensors, largest_rank
from dualign.errors import PublishError
from dualign.generation.vllm import max_lora_rank
from dualign.hashing import sha256
from dualign.publish.card.front_matter import make_card
from dualign.publish.card.pack import PackUsage, render_pack
from dualign.publish.checklist import CheckResult, judge
from dualign.publish.hub.metadata import HubClient
from dualign.publish.lineage import read_lineage
from dualign.publish.manifest import is_published
from dualign.publish.publish import examine, prepare
from dualign.publish.release import PublishRequest, Release, StagedRelease, file_sizes

FOLDER = "adapters"
_SHARED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
_PEFT_PREFIX = "lora_"
_EMBEDDINGS = ("embed_tokens", "lm_head")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedAdapter:
    """One adapter of the pack."""

    name: str
    release: Release
    staged: StagedRelease
    rank: int
    unserved: tuple[str, ...]
    """why vLLM doesn't serve it beside the others; empty if it does"""


def adapter_names(run_dirs: Sequence[Path]) -> list[str]:
    """Name adapters after their stages, and after the run too where stages have the same name.

    runs/law/sft and runs/code/sft become law-sft and code-sft. PEFT takes no dots in a name.

    Raises:
        PublishError: a folder is named twice.
    """
    folders = [folder.resolve() for folder in run_dirs]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.parent.name}-{folder.name}" for folder in folders]
    names = [re.sub(r"[^\w-]+", "-", name) for name in names]
    # PEFT tells adapters' parameters from others by this prefix, and warns of such a name.
    names = [f"{name}-adapter" if name in _PEFT_PREFIX else name for name in names]
    for name in names:
        if names.count(name) > 1:
            places = [
                str(folder) for folder, other in zip(run_dirs, names, strict=True) if other == name
            ]
            raise PublishError(f"{' and '.join(places)} would both be {FOLDER}/{name}; rename one")
    return names


def prepare_pack(requests: Sequence[PublishRequest], folder: Path) -> StagedRelease:
    """Stage each adapter into `folder`/adapters/NAME, check each and the whole. Nothing leaves.

    Raises:
        DualignError: one isn't the run directory of an adapter, or a request can't be met.
    """
    _require_adapters(requests)
    names = adapter_names([request.run_dir for request in requests])
    releases = [
        examine(replace(request, contents="adapter", place=f"{FOLDER}/{name}"), HubClient())
        for name, request in zip(names, requests, strict=True)
    ]
    _require_license_names(requests[0].license_of, releases)
    adapters = [
        _prepare(name, release, folder / FOLDER / name)
        for name, release in zip(names, releases, strict=True)
    ]
    checks = [
        replace(check, name=f"{adapter.name}: {check.name}")
        for adapter in adapters
        for check in adapter.staged.checks
    ]
    checks.append(agreement(adapters))
    first = adapters[0]
    share(first, folder)
    card = card_of(adapters)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return StagedRelease(
        request=first.staged.request,
        folder=folder,
        files=file_sizes(folder),
        checks=tuple(checks),
        card=card,
        message=f"Publish {len(adapters)} adapters: {', '.join(names)}",
        left_out=tuple(
            (f"{adapter.name}/{name}", why)
            for adapter in adapters
            for name, why in adapter.staged.left_out
        ),
        is_outdated=_is_outdated,
        repository=first.staged.repository,
    )


def _require_adapters(requests: Sequence[PublishRequest]) -> None:
    """Refuse what can't be, before an adapter is loaded."""
    request = requests[0]
    for option, value in (
        ("--what", request.contents if request.contents != "adapter" else None),
        ("--quantized-of", request.quantized_of),
        ("--with", request.exports),
        ("--card-only", request.card_only),
    ):
        if value:
            raise PublishError(
                f"{option}: several run directories are published as adapters of one base, all of them"
            )
    for request in requests:
        if read_lineage(request.run_dir).adapter_folder is None:
            raise PublishError(
                f"{request.run_dir}: holds weights and no adapter, and several run directories are published "
                "as adapters of one base: leave it out, and publish it in a repository of its own"
            )


def _require_license_names(license_of: Mapping[str, str], releases: Sequence[Release]) -> None:
    """Refuse a name of --license-of that none of the adapters has."""
    known = dict.fromkeys(name for release in releases for name in release.license.of)
    for name, license in license_of.items():
        if name not in known:
            raise PublishError(
                f"--license-of {name}={license}: no adapter has a source of that name; they have "
                f"{', '.join(known) or 'none'}"
            )


def _is_outdated(name: str) -> bool:
    return name.startswith(f"{FOLDER}/") or is_published(name)


def unserved(config: Mapping[str, Any]) -> tuple[str, ...]:
    """List what vLLM doesn't serve of an adapter_config.json."""
    reasons = []
    if config.get("use_dora"):
        reasons.append("DoRA")
    if has_whole_tensors(config) or config.get("trainable_token_indices"):
        reasons.append("whole tensors (modules_to_save, bias or trained tokens)")
    rank = largest_rank(config)
    if max_lora_rank(rank) is None:
        reasons.append(f"rank {rank}, and it takes 512 at most")
    targets = config.get("target_modules") or ()
    named = [targets] if isinstance(targets, str) else list(targets)
    if layers := [layer for layer in _EMBEDDINGS if layer in named]:
        reasons.append(f"LoRA on {' and '.join(layers)}")
    if config.get("alpha_pattern") or config.get("rank_pattern"):
        reasons.append("ranks or scales that differ by layer (rank_pattern, alpha_pattern)")
    return tuple(reasons)


def _prepare(name: str, release: Release, folder: Path) -> PackedAdapter:
    folder.mkdir(parents=True)
    staged = prepare(release.request, folder)
    file = staged.folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return PackedAdapter(
        name=name,
        release=release,
        staged=staged,
        rank=largest_rank(config) if config else 0,
        unserved=unserved(config) if config else (),
    )


def agreement(adapters: Sequence[PackedAdapter]) -> CheckResult:
    """The adapters have one base at one commit, one tokenizer, one template and one license."""
    first, *others = adapters
    expected = _common(first)
    faults = []
    for adapter in others:
        for what, value in _common(adapter).items():
            if value != expected[what]:
                faults.append(
                    f"{what}: {first.name} has {expected[what]}, {adapter.name} {value}; adapters of a pack "
                    "share it"
                )
    outcome = judge(faults, f"{len(adapters)} adapters of {expected['base']}, with one tokenizer")
    return CheckResult(name="pack", state=outcome.state, message=outcome.message)


def _common(adapter: PackedAdapter) -> dict[str, str]:
    release, folder = adapter.release, adapter.staged.folder
    base = release.adapter_base
    files = {
        name: sha256(folder / name)[:12] if (folder / name).is_file() else "none"
        for name in ("tokenizer.json", "chat_template.jinja")
    }
    return {
        "base": f"{base.label}@{base.revision}" if base else "none",
        **files,
        "license": str(release.license.id),
    }


def share(adapter: PackedAdapter, folder: Path) -> None:
    """Copy the tokenizer to the top, where servers and AutoTokenizer look."""
    for name in _SHARED:
        if (adapter.staged.folder / name).is_file():
            shutil.copyfile(adapter.staged.folder / name, folder / name)


def card_of(adapters: Sequence[PackedAdapter]) -> str:
    """Return the card of the whole."""
    release = adapters[0].release
    request = release.request
    base = release.adapter_base
    data = ModelCardData(
        license=release.license.id,
        language=_languages(release) or None,
        base_model=base.id if base else None,
        base_model_relation="adapter" if base and base.id else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["dualign", "dual-mode", "reasoning", "lora"],
        model_name=request.repo_id.split("/")[-1],
    )
    usage = PackUsage(
        repo_id=request.repo_id,
        base=(base.id if base else None) or "BASE",
        revision=(base.revision if base else None) or "main",
        adapters=tuple((adapter.name, adapter.rank, adapter.unserved) for adapter in adapters),
        folder=FOLDER,
        allowed=_allowed(adapters),
        release=release,
    )
    repository = adapters[0].staged.repository
    before = None if isinstance(repository, str) else repository.card
    return str(make_card(data, render_pack(usage), before=before))


def _allowed(adapters: Sequence[PackedAdapter]) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Return each check that fails and is allowed, with its message and the adapters that fail it."""
    names: dict[tuple[str, str], tuple[str, ...]] = {}
    for adapter in adapters:
        for check in adapter.staged.checks:
            if check.state == "allowed":
                key = (check.name, check.message)
                names[key] = (*names.get(key, ()), adapter.name)
    return tuple((*key, failing) for key, failing in names.items())


def _languages(release: Release) -> list[str]:
    named = release.request.languages or tuple(
        language for base in release.bases for language in base.languages
    )
    return sorted(set(named))
