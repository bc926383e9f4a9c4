"""Starts sardine-doctor from outside of sardine_gguf, which a broken installation cannot import."""

from __future__ import annotations

import json
import sys


def main() -> int:
    """Entry point of sardine-doctor; returns the exit code."""
    try:
        from sardine_gguf.doctor import main as examine
    except Exception as e:  # whatever keeps it from being imported is what the doctor is asked for
        remedy = "pip install --force-reinstall --no-deps sardine_gguf llama-cpp-python==0.3.36"
        if "LLAMA_CPP_LIB_PATH" in str(e):
            remedy = "unset LLAMA_CPP_LIB_PATH"
        found = {
            "name": "installation",
            "status": "error",
            "finding": f"sardine_gguf cannot be imported: {' '.join(str(e).split())}",
            "remedy": remedy,
        }
        if "--json" in sys.argv[1:]:
            print(json.dumps({"ok": False, "checks": [found]}, indent=2))
        else:
            print(f"{found['status']:7}  {found['name']}  {found['finding']}")
            print(f"{'':7}  {'':12}  -> {found['remedy']}")
        return 1
    except KeyboardInterrupt:
        return 130
    return examine()
