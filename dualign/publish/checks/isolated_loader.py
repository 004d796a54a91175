"""Load staged files as users will: transformers and peft, no dualign, in a process of its own.

    python -I isolated_loader.py REQUEST.json

REQUEST: {"folder", "adapter": null or a folder, "base", "revision", "dtype", "questions", "modes":
{MODE: {"system": text or null, "variables"}}, "limit", "out"}. The outputs are OUT.json with the
answers to each question in both modes, and OUT.safetensors with the logits of each prompt under
NUMBER/MODE.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any


def main(request_file: str) -> None:
    """Load the model, ask it, and write the output."""
    sys.modules["dualign"] = None  # type: ignore[assignment] # an import of it fails
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    gc.disable()  # what the imports make stays
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    model, faults = _load(request)
    gc.enable()
    answers, logits = [], {}
    for number, question in enumerate(request["questions"]):
        for mode, switch in request["modes"].items():
            messages = [{"role": "user", "content": question}]
            if switch["system"]:
                messages.insert(0, {"role": "system", "content": switch["system"]})
            text = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **switch["variables"]
            )
            ids_BT = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(
                model.device
            )
            with torch.no_grad():
                logits[f"{number}/{mode}"] = (
                    model(input_ids=ids_BT).logits.float().cpu().contiguous()
                )
                limit = request["limit"]
                generated_BT = model.generate(ids_BT, max_new_tokens=limit, do_sample=False)
            new = generated_BT[0, ids_BT.shape[1] :].tolist()
            answers.append(
                {
                    "question": question,
                    "mode": mode,
                    "prompt": text,
                    "ids": ids_BT[0].tolist(),
                    **_decoded(tokenizer, new),
                }
            )
    out = Path(request["out"])
    save_file(logits, out.with_suffix(".safetensors"))
    output = {"faults": faults, "answers": answers}
    out.with_suffix(".json").write_text(json.dumps(output), encoding="utf-8")


def _load(request: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return the model, and the weights that were missing or left over."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = request["dtype"]
    options = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    where = request["base"] if request["adapter"] else request["folder"]
    revision = (
        {"revision": request["revision"]} if request["adapter"] and request["revision"] else {}
    )
    model, info = AutoModelForCausalLM.from_pretrained(
        where, output_loading_info=True, **options, **revision
    )
    faults = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, info[kind]))[:5])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info.get(kind)
    ]
    if request["adapter"]:
        import warnings

        from peft import PeftModel

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(model, request["adapter"])
        faults += [str(w.message) for w in caught if "adapter keys" in str(w.message)]
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    return model.eval(), faults


def _decoded(tokenizer: Any, new: list[int]) -> dict[str, Any]:
    """Return the answer's text up to its end, and whether it has one."""
    finished = tokenizer.eos_token_id in new
    if finished:
        new = new[: new.index(tokenizer.eos_token_id)]
    return {"generated": tokenizer.decode(new, skip_special_tokens=False), "finished": finished}


if __name__ == "__main__":
    main(sys.argv[1])
