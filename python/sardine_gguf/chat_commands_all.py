"""Every module that adds commands to the chat. The order is that of /help."""

# isort: off
from sardine_gguf import chat_commands_talk  # noqa: F401
from sardine_gguf import chat_commands_files  # noqa: F401
from sardine_gguf import chat_commands_show  # noqa: F401
from sardine_gguf import chat_commands_experts  # noqa: F401
from sardine_gguf import chat_commands_end  # noqa: F401
# isort: on

from sardine_gguf.chat_commands import COMMANDS

__all__ = ["COMMANDS"]
