"""Templates without a system role: the system text stands at the head of the first user turn.

As Gemma and the older Mistral models document. A row is repaired so where its source says it
(`on_fault: {no_system_role: system_into_user}`), and the saved template then does the same, so
that the model is asked as it was trained.
"""

from collections.abc import Sequence
from dataclasses import replace

from dualign.data.conversation import Message
from dualign.data.text.template import ChatTemplate
from dualign.errors import TemplateError

_FOLD = (
    "{%- if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user'"
    " and messages[0]['content'] is string and messages[1]['content'] is string %}"
    "{%- set messages = [{'role': 'user', 'content': ((messages[0]['content'] | trim) + '\\n\\n' + "
    "messages[1]['content']) if messages[0]['content'] | trim else messages[1]['content']}] + "
    "messages[2:] %}{%- endif %}\n"
)
_WORD = "qzxsystem"


def takes_system(template: ChatTemplate) -> bool:
    """Return whether the template prints a system text. True where it can't be told."""
    question = Message(role="user", content="Hi")
    try:
        template.prompt((question,), mode="no_think")
    except TemplateError:
        return True
    system = Message(role="system", content=_WORD)
    try:
        return _WORD in template.prompt((system, question), mode="no_think")
    except TemplateError:
        return False


def system_into_user(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return messages with the system text at the head of the first user turn; as they are if none
    follows at once.
    """
    if [message.role for message in messages[:2]] != ["system", "user"]:
        return tuple(messages)
    system, user, *rest = messages
    content = "\n\n".join(filter(None, (system.content.strip(), user.content)))
    return (replace(user, content=content), *rest)


def with_fold(text: str) -> str:
    """Return a template that puts a system text at the head of the first user turn."""
    return text if _FOLD in text else _FOLD + text


def folding_system(template: ChatTemplate) -> ChatTemplate:
    """Return the template that a stage with the repair trains and saves; rows without the repair
    stay refused. A template that has a system role stays as it is.
    """
    if takes_system(template):
        return template
    tool_use = None if template.tool_use is None else with_fold(template.tool_use)
    return replace(template, text=with_fold(template.text), tool_use=tool_use, folds_system=True)
