"""sardine-cli: from arguments to a chat or one answer, and to an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sardine_gguf.cli_environment import with_environment
from sardine_gguf.cli_flags import build_parser
from sardine_gguf.program import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    library_log,
    run_program,
)

if TYPE_CHECKING:
    from sardine_gguf.chat_loop import Chat
    from sardine_gguf.model import Sardine


def _check_use(args: argparse.Namespace) -> None:
    """Raises ValueError where one flag would leave another without effect."""
    asked = args.prompt is not None or args.file is not None
    if args.conversation and asked:
        raise ValueError("-cnv chats, -p and -f ask once: use one")
    if args.conversation and args.raw:
        raise ValueError("--raw continues a text, -cnv chats: use one")
    for name in ("system_prompt", "system_prompt_file", "session", "output"):
        if args.raw and getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for chats, not for --raw")
    if args.markdown and args.show_routing:
        raise ValueError(
            "--markdown renders an answer, --show-routing colours it token by token: use one"
        )
    if args.example and args.model:
        raise ValueError("--example and -m both name a model: use one")


# Flags of files that are read, and of files that are written as they are found.
_INPUTS = {
    "-m": "model",
    "--adapter": "adapter",
    "-f": "file",
    "-sysf": "system_prompt_file",
    "--session": "session",
    "--chat-template-file": "chat_template_file",
    "--grammar-file": "grammar_file",
    "--json-schema-file": "json_schema_file",
}
_OUTPUTS = {"-o": "output", "--log-file": "log_file"}


def _check_outputs(args: argparse.Namespace) -> None:
    """Raises ValueError where an output would be written over an input, or over another output."""
    from sardine_gguf.output_file import same_file

    taken = [(flag, getattr(args, name)) for flag, name in _INPUTS.items()]
    for flag, name in _OUTPUTS.items():
        path = getattr(args, name)
        for other, used in taken:
            if path and used and used != "-" and same_file(path, used):
                raise ValueError(f"{flag} {path} is the file of {other}: name another one")
        taken.append((flag, path))


def _single_prompt(args: argparse.Namespace) -> str | None:
    """The text to answer once, or None for a chat."""
    from sardine_gguf.text_files import read_text_file

    parts = [] if args.prompt is None else [str(args.prompt)]
    if args.file is not None:
        parts.append(read_text_file(args.file))
    if parts:
        return "\n\n".join(parts)
    if args.conversation or (sys.stdin is not None and sys.stdin.isatty()):
        return None
    return read_text_file("-") if sys.stdin is not None else ""


def _information(args: argparse.Namespace) -> str | None:
    """What is told without a model, if that was asked for."""
    if args.completion_bash:
        from sardine_gguf.cli_completion import bash_completion

        return bash_completion(build_parser())
    if args.list_devices:
        from sardine_gguf.doctor_checks import device_list

        return device_list()
    return None


def _load(args: argparse.Namespace) -> Sardine:
    from sardine_gguf.cli_options import model_options, set_template
    from sardine_gguf.first_minute import load_model
    from sardine_gguf.model import Sardine

    options = model_options(args)
    model = load_model(lambda tell: Sardine(args.model, progress=tell, **options), args.model)
    set_template(model, args.chat_template_file)
    if args.reasoning == "on" and model.think_tokens is None:
        raise ValueError("-rea on: this model has no tokens for thoughts")
    return model


def _chat(args: argparse.Namespace, model: Sardine) -> Chat:
    from sardine_gguf.chat_experts import configure
    from sardine_gguf.chat_loop import Chat
    from sardine_gguf.chat_session import SessionFile
    from sardine_gguf.chat_settings import Looks
    from sardine_gguf.cli_options import generation_options, system_prompt
    from sardine_gguf.system_prompt import thinking_instructions
    from sardine_gguf.transcript import Transcript

    keeps = args.reasoning != "off" and not args.raw and args.think_prompt is not False
    instructions = thinking_instructions(model.chat_template) if keeps else None
    if args.think_prompt and instructions is None:
        raise ValueError("--think-prompt: this model's template has no instructions to think")
    chat = Chat(
        model,
        options=generation_options(args),
        system=system_prompt(args),
        instructions=instructions,
        looks=Looks(not args.hide_thinking, bool(args.markdown), args.show_timings is not False),
        fixed=_fixed(args),
        colour=args.color,
        session=SessionFile(args.session) if args.session else None,
        transcript=Transcript(args.output) if args.output else None,
    )
    configure(chat, args)
    return chat


def _fixed(args: argparse.Namespace) -> list[str]:
    """What flags decide, and a session does not."""
    given = {
        "thinking": args.hide_thinking,
        "markdown": args.markdown is not None or args.show_routing,
        "timings": args.show_timings is not None,
        "experts": args.experts is not None,
    }
    return [name for name, is_given in given.items() if is_given]


def _talk(args: argparse.Namespace, chat: Chat) -> int:
    """The chat; on terminals with line editing."""
    from sardine_gguf.terminal import moves_cursor

    if args.simple_io or not (sys.stdin.isatty() and moves_cursor(sys.stdout)):
        from sardine_gguf.composing import simple_reader

        chat.read = simple_reader(multiline=args.multiline_input)
    else:
        from sardine_gguf.line_editor import history_path, terminal_reader
        from sardine_gguf.typed_ahead import quiet_keys

        history = None if args.no_history else history_path()
        chat.read = terminal_reader(chat, history=history, multiline=args.multiline_input)
        chat.busy = lambda: quiet_keys(sys.stdin)
    chat.loop(single_turn=args.single_turn)
    stopped = args.single_turn and chat.last is not None and chat.last.interrupted
    return EXIT_INTERRUPTED if stopped else EXIT_OK


def run(args: argparse.Namespace) -> int:
    """Loads the model and answers; errors are the caller's."""
    told = _information(args)
    if told is not None:
        print(told)
        return EXIT_OK
    _check_use(args)
    if args.example:
        from sardine_gguf.example import example_file

        args.model = str(example_file())
    if not args.model:
        from sardine_gguf.first_minute import without_model
        from sardine_gguf.terminal import line_width
        from sardine_gguf.wrapping import wrapped

        print(wrapped(without_model(), line_width(sys.stderr)), file=sys.stderr)
        return EXIT_USAGE
    _check_outputs(args)
    with (
        library_log(args.verbosity, args.log_file, everything=args.verbose),
        _load(args) as model,
    ):
        prompt = _single_prompt(args)
        if prompt is not None and not prompt.strip():
            raise ValueError("the prompt is empty")
        if prompt is None and args.raw:
            raise ValueError("--raw needs a text: give it with -p, -f or on standard input")
        if prompt is None or args.verbose:
            from sardine_gguf.model_facts import facts
            from sardine_gguf.terminal import clean, line_width
            from sardine_gguf.wrapping import wrapped

            width = line_width(sys.stderr)
            print(wrapped(clean(facts(model, width)), width), file=sys.stderr)
        chat = _chat(args, model)
        if prompt is None:
            return _talk(args, chat)
        if args.raw:
            turn = chat.run(model.start(prompt, **chat.options))
            chat.report(turn)
        else:
            turn = chat.ask(prompt.strip())
            chat.save_session()
        return EXIT_INTERRUPTED if turn.interrupted else EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sardine-cli; returns the exit code."""
    parser = build_parser()
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = with_environment(given, os.environ)
    except ValueError as e:
        parser.error(str(e))
    return run_program(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
