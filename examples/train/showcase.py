"""Questions shown in the example's README, by domain; the last entries are short chats."""

SHOWCASE: dict[str, tuple[str, ...]] = {
    "math": (
        "What is 15% of 80?",
        "What is 47 + 38?",
        "Tom has 12 apples and buys 7 more. How many apples does Tom have now?",
        "What is a prime number?",
        "What is 6 x 24?",
    ),
    "logic": (
        "All bloops are razzies. All razzies are lazzies. Are all bloops lazzies?",
        "Anna is taller than Ben. Ben is taller than Carl. Who is the shortest?",
        "Which word is the odd one out: apple, hammer, pear, plum?",
        "What is a paradox?",
        "The key is in the box or the bag. It is not in the box. Where is the key?",
    ),
    "code": (
        "Write a Python function that returns the square of a number.",
        "Write a Python function that adds 7 to a number.",
        "What is recursion?",
        "x = [4, 7, 2]. What is max(x)?",
        "What does len do in Python?",
    ),
    "science": (
        "What is the chemical symbol for gold?",
        "Why is the sky blue?",
        "Which planet is closest to the sun?",
        "Is water solid, liquid or gas at 120 degrees Celsius?",
        "How many meters are in 7 kilometers?",
    ),
    "planning": (
        "How do I make tea?",
        "The train starts at 9:15 and takes 2 hours. When does it end?",
        "Painting must come after sanding and cleaning must come before sanding. "
        "What is the order?",
        "I have 50 dollars. A lamp costs 30 and a book costs 15. Can I buy both?",
        "What is a milestone?",
    ),
    "abstract": (
        "What comes next: 2, 5, 8, 11?",
        "Hot is to cold as up is to what?",
        "What comes next: red, blue, green, red, blue?",
        "What is a palindrome?",
        "The trophy does not fit in the suitcase because it is too big. What is too big?",
    ),
}

CHATS: tuple[tuple[str, ...], ...] = (
    ("What is 15% of 80?", "And 25%?"),
    ("What is the chemical symbol for gold?", "And for silver?"),
    ("What is the opposite of hot?", "And of up?", "Thanks!"),
)
