"""JSON schemas as GBNF grammars whose every text is valid by the schema."""

from sardine_gguf.json_schema.grammar import object_grammar, schema_grammar

__all__ = ["object_grammar", "schema_grammar"]
