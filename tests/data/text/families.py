"""Small templates with the behavior of families: how they switch modes, and who has no system role."""

_TURNS = (
    "{%- for m in rest %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_SPLIT = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{%- set rest = messages[1:] if messages[0].role == 'system' else messages %}"
)
_SYSTEM = "{{- '<|im_start|>system\\n' + head + '<|im_end|>\\n' }}"

# `thinking` changes the default system text, and does nothing beside a system text of the user's.
GRANITE = (
    _SPLIT
    + "{%- set head = system or 'You are Granite.' + (' Think in a <think> block.' if thinking else '') %}"
    + _SYSTEM
    + _TURNS
)
# `thinking` opens or closes the block in the generation prompt.
DEEPSEEK = "{%- set rest = messages %}" + _TURNS.replace(
    "'<|im_start|>assistant\\n' }}{%- endif",
    "'<|im_start|>assistant\\n' + ('<think>' if thinking else '</think>') }}{%- endif",
)
GPT_OSS = (
    _SPLIT
    + "{%- set head = 'Reasoning: ' + (reasoning_effort or 'medium') + '\\n' + system %}"
    + _SYSTEM
    + _TURNS
)
# The text of the system message is all that switches; without one the template writes its own.
NEMOTRON = _SPLIT + "{%- set head = system or 'detailed thinking on' %}" + _SYSTEM + _TURNS
# Flags are read, and taken out of the text.
NEMOTRON_NANO = (
    _SPLIT
    + "{%- set head = system.replace('/no_think', '').replace('/think', '').strip() %}"
    + _SYSTEM
    + _TURNS.replace(
        "'<|im_start|>assistant\\n' }}{%- endif",
        "'<|im_start|>assistant\\n' + ('<think></think>' if '/no_think' in system else '<think>\\n') }}{%- endif",
    )
)
CUSTOM = "{%- set rest = messages %}{%- set head = 'Effort: ' ~ effort %}" + _SYSTEM + _TURNS
PLAIN = "{%- set rest = messages %}" + _TURNS
GEMMA = (
    "{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}"
    "{%- for m in messages %}{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' "
    "+ m.content | trim + '<end_of_turn>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)
