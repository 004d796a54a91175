"""How to use what is published, by engine and in both modes: code that runs as it stands."""

from dataclasses import dataclass

from dualign.publish.plan import What

QUESTION = "Add 17, 28 and 5."


@dataclass(frozen=True, kw_only=True, slots=True)
class Snippet:
    """Code under a heading. `language` is python or bash."""

    title: str
    language: str
    code: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What the snippets name."""

    repo_id: str
    what: What
    base: str
    revision: str
    rank: int
    question: str = QUESTION


def needed(what: What) -> str:
    """What the Python needs."""
    return "pip install torch transformers" + (" peft" if what != "weights" else "")


def snippets(use: Use) -> list[Snippet]:
    """transformers, peft where there is an adapter, vLLM, llama.cpp."""
    found = [_transformers(use)] if use.what != "adapter" else []
    if use.what != "weights":
        found.append(_peft(use))
    return [*found, _vllm(use), _llama_cpp(use)]


_ASK = """
messages = [{{"role": "user", "content": "{question}"}}]
for thinking in (True, False):  # /think, then /no_think
    inputs = tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=True,
        enable_thinking=thinking,
        return_tensors="pt",
        return_dict=True,
    ).to(model.device)
    output = model.generate(**inputs, max_new_tokens=512, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    print(tokenizer.decode(answer, skip_special_tokens=True))
"""


def _transformers(use: Use) -> Snippet:
    code = f'''from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{use.repo_id}")
model = AutoModelForCausalLM.from_pretrained("{use.repo_id}")
''' + _ASK.format(question=use.question)
    note = (
        "A system message with the word `/think` or `/no_think` switches too, and comes before "
        "`enable_thinking`. Everything before `</think>` is thinking, what follows is the answer."
    )
    return Snippet(title="transformers", language="python", code=code.strip(), note=note)


def _peft(use: Use) -> Snippet:
    place = ', subfolder="adapter"' if use.what == "both" else ""
    code = f'''from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{use.repo_id}")
base = AutoModelForCausalLM.from_pretrained("{use.base}", revision="{use.revision}")
model = PeftModel.from_pretrained(base, "{use.repo_id}"{place})
''' + _ASK.format(question=use.question)
    note = (
        "Load the adapter through peft, not by its folder through transformers. The tokenizer and the "
        "chat template are this repository's, not the base's."
    )
    return Snippet(title="peft", language="python", code=code.strip(), note=note)


def _vllm(use: Use) -> Snippet:
    body = f'"messages": [{{"role": "user", "content": "{use.question}"}}]'
    if use.what == "adapter":
        head = f"""hf download {use.repo_id} --local-dir adapter
vllm serve {use.base} --revision {use.revision} --tokenizer adapter \\
  --enable-lora --max-lora-rank {_served_rank(use.rank)} --lora-modules dual=adapter &"""
        name = "dual"
    else:
        head = f"vllm serve {use.repo_id} &"
        name = use.repo_id
    code = f'''{head}
for thinking in true false; do
  curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{{
    "model": "{name}", {body},
    "chat_template_kwargs": {{"enable_thinking": '$thinking'}}, "temperature": 0, "max_tokens": 512}}'
done'''
    return Snippet(title="vLLM", language="bash", code=code)


def _served_rank(rank: int) -> int:
    allowed = (8, 16, 32, 64, 128, 256, 320, 512)
    return next((one for one in allowed if one >= rank), rank)


def _llama_cpp(use: Use) -> Snippet:
    if use.what == "adapter":
        code = f"""hf download {use.base} --revision {use.revision} --local-dir base
hf download {use.repo_id} --local-dir adapter
python convert_hf_to_gguf.py base --outtype f16 --outfile base.gguf
python convert_lora_to_gguf.py adapter --base base --outfile adapter.gguf
llama-server --model base.gguf --lora adapter.gguf --jinja --chat-template-file adapter/chat_template.jinja &"""
    else:
        code = f"""hf download {use.repo_id} --local-dir model
python convert_hf_to_gguf.py model --outtype f16 --outfile model.gguf
llama-server --model model.gguf --jinja &"""
    code += f'''
for thinking in true false; do
  curl http://localhost:8080/v1/chat/completions -H 'Content-Type: application/json' -d '{{
    "messages": [{{"role": "user", "content": "{use.question}"}}],
    "chat_template_kwargs": {{"enable_thinking": '$thinking'}}, "temperature": 0, "max_tokens": 512}}'
done'''
    note = "Converting is done by llama.cpp's own scripts; run this in its folder."
    return Snippet(title="llama.cpp", language="bash", code=code, note=note)
