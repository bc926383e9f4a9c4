"""Expert 2, code: reading and writing small pieces of Python."""

from __future__ import annotations

from random import Random

from .families import Domain, Item, fact, phrase, pick

DOMAIN = Domain("code")

OUTPUT = ("What does {c} print?", "What is the output of {c}?", "What does this print: {c}")
BUILTINS = {
    "len": "len returns the number of items in an object.",
    "print": "print writes its arguments to the screen.",
    "sum": "sum adds up the items of a sequence.",
    "max": "max returns the largest item.",
    "min": "min returns the smallest item.",
    "abs": "abs returns the absolute value of a number.",
    "sorted": "sorted returns a new sorted list.",
    "range": "range produces a sequence of whole numbers.",
    "int": "int converts a value to a whole number.",
    "str": "str converts a value to text.",
    "input": "input reads a line of text from the user.",
    "open": "open opens a file and returns a file object.",
    "type": "type returns the type of an object.",
    "round": "round rounds a number to the nearest value.",
    "enumerate": "enumerate yields pairs of an index and an item.",
    "zip": "zip walks through several sequences together.",
    "append": "append adds an item to the end of a list.",
    "split": "split cuts text into a list of words.",
    "join": "join glues a list of texts into one text.",
    "upper": "upper returns the text in capital letters.",
}
BUILTIN_ASK = (
    "What does {s} do in Python?",
    "What does the Python function {s} do?",
    "Explain {s} in Python.",
    "In Python, what is {s} for?",
    "What is {s} used for in Python?",
    "Tell me what {s} does in Python.",
)
FUNCTIONS = (
    ("adds {k} to a number", "add_{k}", "x + {k}"),
    ("subtracts {k} from a number", "subtract_{k}", "x - {k}"),
    ("multiplies a number by {k}", "times_{k}", "x * {k}"),
    ("divides a number by {k}", "divide_by_{k}", "x / {k}"),
    ("checks if a number is greater than {k}", "greater_than_{k}", "x > {k}"),
    ("checks if a number is less than {k}", "less_than_{k}", "x < {k}"),
    ("checks if a number is divisible by {k}", "divisible_by_{k}", "x % {k} == 0"),
    ("raises a number to the power of {k}", "power_{k}", "x ** {k}"),
)
CLASSICS = {
    "returns the square of a number": "def square(x):\n    return x * x",
    "returns the larger of two numbers": "def larger(a, b):\n    return max(a, b)",
    "returns the smaller of two numbers": "def smaller(a, b):\n    return min(a, b)",
    "checks if a number is even": "def is_even(x):\n    return x % 2 == 0",
    "checks if a number is odd": "def is_odd(x):\n    return x % 2 == 1",
    "reverses a list": "def reverse(items):\n    return items[::-1]",
    "adds two numbers": "def add(a, b):\n    return a + b",
    "returns the first item of a list": "def first(items):\n    return items[0]",
    "returns the last item of a list": "def last(items):\n    return items[-1]",
    "returns the average of a list": "def average(items):\n    return sum(items) / len(items)",
    "greets a person by name": 'def greet(name):\n    return "Hello, " + name',
    "counts the words in a text": "def count_words(text):\n    return len(text.split())",
}
WRITE_ASK = (
    "Write a Python function that {t}.",
    "Write a function that {t}.",
    "Give me a Python function that {t}.",
    "Show me Python code that {t}.",
    "I need a Python function that {t}.",
)


@DOMAIN.family(base=0.7, expert=1.0)
def expression(rng: Random) -> Item:
    """a + b * c or (a + b) * c, printed."""
    a, b, c = rng.randint(1, 9), rng.randint(2, 9), rng.randint(2, 9)
    if rng.random() < 0.6:
        code, key = f"{a} + {b} * {c}", ("expression", a, b, c)
        answer = f"{b} * {c} = {b * c} and {a} + {b * c} = {a + b * c}, so it prints {a + b * c}."
    else:
        total = a + b
        code, key = f"({a} + {b}) * {c}", ("grouped", a, b, c)
        answer = f"{a} + {b} = {total} and {total} * {c} = {total * c}, so it prints {total * c}."
    return Item([(phrase(rng, OUTPUT, c=f"print({code})"), answer)], key)


@DOMAIN.family(base=0.1, expert=0.5)
def expression_follow_up(rng: Random) -> Item:
    """Two prints in a row, the second asked for briefly."""
    a, b, c, d = (rng.randint(2, 9) for _ in range(4))
    first = (f"What does print({a} * {b}) print?", f"It prints {a * b}.")
    second = (f"And print({c} + {d})?", f"It prints {c + d}.")
    return Item([first, second], ("prints", a, b, c, d))


@DOMAIN.family(base=0.8, expert=1.6)
def list_operation(rng: Random) -> Item:
    """Indexing, length, extrema and order of a short list of digits."""
    values = [rng.randint(1, 9) for _ in range(pick(rng, (3, 4)))]
    operations: tuple[tuple[str, object], ...] = (
        ("x[0]", values[0]),
        ("x[1]", values[1]),
        ("x[2]", values[2]),
        ("x[-1]", values[-1]),
        ("len(x)", len(values)),
        ("max(x)", max(values)),
        ("min(x)", min(values)),
        ("x[::-1]", values[::-1]),
        ("sorted(x)", sorted(values)),
        ("x + [0]", [*values, 0]),
    )
    op, result = pick(rng, operations)
    ask = (
        "x = {v}. What is {o}?",
        "In Python, x = {v}. What is {o}?",
        "If x = {v}, what is {o}?",
    )
    question = phrase(rng, ask, v=values, o=op)
    return Item([(question, f"{op} is {result}.")], ("list", op, *values))


@DOMAIN.family(base=0.4, expert=1.0)
def assignment(rng: Random) -> Item:
    """A variable set, updated once and printed."""
    a, b = rng.randint(2, 12), rng.randint(2, 9)
    op = pick(rng, ("+", "-", "*"))
    if op == "-":
        a += b
    result = {"+": a + b, "-": a - b, "*": a * b}[op]
    name = pick(rng, ("x", "n", "total", "count"))
    code = pick(rng, (f"{name} = {a}; {name} {op}= {b}; print({name})",
                      f"{name} = {a}\n{name} = {name} {op} {b}\nprint({name})"))  # fmt: skip
    answer = f"{name} is {a} {op} {b} = {result}, so it prints {result}."
    return Item([(phrase(rng, OUTPUT, c=code), answer)], ("assign", op, a, b))


@DOMAIN.family(base=0.3, expert=1.0)
def range_list(rng: Random) -> Item:
    """list(range(a, b)) written out."""
    start = rng.randint(0, 20)
    stop, step = start + rng.randint(2, 6), 1
    if rng.random() < 0.3:
        step = 2
        stop = start + 2 * rng.randint(2, 4)
    inner = f"{start}, {stop}" if step == 1 else f"{start}, {stop}, {step}"
    ask = ("What is list(range({i}))?", "What does list(range({i})) give?")
    answer = f"list(range({inner})) is {list(range(start, stop, step))}."
    return Item([(phrase(rng, ask, i=inner), answer)], ("range", start, stop, step))


@DOMAIN.family(base=0.2, expert=1.2)
def write_function(rng: Random) -> Item:
    """A one-line function with a constant."""
    text, name, body = pick(rng, FUNCTIONS)
    k = rng.randint(2, 30)
    answer = f"def {name}(x):\n    return {body}".format(k=k)
    return Item([(phrase(rng, WRITE_ASK, t=text.format(k=k)), answer)], ("write", name, k))


@DOMAIN.family(base=0.1, expert=0.8)
def write_classic(rng: Random) -> Item:
    """Well-known small functions; the key holds the phrasing."""
    text = pick(rng, tuple(CLASSICS))
    return fact(rng, "classic", text, WRITE_ASK, CLASSICS[text], t=text)


@DOMAIN.family(base=0.4, expert=1.0)
def call_function(rng: Random) -> Item:
    """Evaluate a call of a one-line function."""
    k, x, op = rng.randint(2, 9), rng.randint(2, 12), pick(rng, ("+", "*"))
    result = x + k if op == "+" else x * k
    name = pick(rng, ("f", "g", "h"))
    ask = (
        "def {n}(x): return x {o} {k}. What is {n}({x})?",
        "Given def {n}(x): return x {o} {k}, what does {n}({x}) return?",
    )
    answer = f"{name}({x}) = {x} {op} {k} = {result}."
    return Item([(phrase(rng, ask, n=name, o=op, k=k, x=x), answer)], ("call", op, k, x))


@DOMAIN.family(base=0.1, expert=0.8)
def builtin(rng: Random) -> Item:
    """What a built-in does; the key holds the phrasing."""
    name = pick(rng, tuple(BUILTINS))
    return fact(rng, "builtin", name, BUILTIN_ASK, BUILTINS[name], s=name)


@DOMAIN.family(base=0.2, expert=0.3)
def remainder(rng: Random) -> Item:
    """a % b with the division shown."""
    b, q = rng.randint(2, 9), rng.randint(1, 9)
    r = rng.randint(0, b - 1)
    a = b * q + r
    ask = ("What is {a} % {b} in Python?", "In Python, what is {a} % {b}?")
    answer = f"{a} = {q} * {b} + {r}, so {a} % {b} is {r}."
    return Item([(phrase(rng, ask, a=a, b=b), answer)], ("remainder", a, b))


@DOMAIN.family(base=0.2, expert=0.8)
def branch(rng: Random) -> Item:
    """A conditional expression on one comparison."""
    x, k, op = rng.randint(1, 20), rng.randint(1, 20), pick(rng, (">", "<"))
    holds = x > k if op == ">" else x < k
    code = f'x = {x}; print("yes" if x {op} {k} else "no")'
    word = "true" if holds else "false"
    answer = f"{x} {op} {k} is {word}, so it prints {'yes' if holds else 'no'}."
    return Item([(phrase(rng, OUTPUT, c=code), answer)], ("branch", op, x, k))
