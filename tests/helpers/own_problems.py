"""Our own problems in the formats of HumanEval and MBPP, each with a right and a wrong solution."""

import json
from pathlib import Path
from typing import Any

HUMANEVAL: list[dict[str, str]] = [
    {
        "task_id": "Own/0",
        "prompt": 'def largest_gap(numbers: list[int]) -> int:\n    """Return the largest distance of neighbours.\n\n'
        '    >>> largest_gap([1, 4, 5])\n    3\n    """\n',
        "entry_point": "largest_gap",
        "canonical_solution": "    return max(abs(a - b) for a, b in zip(numbers, numbers[1:]))\n",
        "wrong_solution": "    return max(a - b for a, b in zip(numbers, numbers[1:]))\n",
        "test": "\n\nMETADATA = {'author': 'own'}\n\n\ndef check(candidate):\n    assert candidate([1, 4, 5]) == 3\n"
        "    assert candidate([9, 1]) == 8\n",
    },
    {
        "task_id": "Own/1",
        "prompt": 'import math\n\n\ndef is_square(n: int) -> bool:\n    """Tell squares."""\n',
        "entry_point": "is_square",
        "canonical_solution": "    return n >= 0 and math.isqrt(n) ** 2 == n\n",
        "wrong_solution": "    return math.isqrt(n) ** 2 == n\n",
        "test": "def check(candidate):\n    assert candidate(49)\n"
        "    assert not candidate(50)\n    assert not candidate(-1)\n",
    },
    {
        "task_id": "Own/2",
        "prompt": "def inverse(x: float) -> float:\n    return 1 / x\n\n\n"
        'def inverses(xs: list[float]) -> list[float]:\n    """Return the inverses, but not of 0."""\n',
        "entry_point": "inverses",
        "canonical_solution": "    return [inverse(x) for x in xs if x]\n",
        "wrong_solution": "    return [inverse(x) for x in xs]\n",
        "test": "def check(candidate):\n    assert candidate([2, 0, 4]) == [0.5, 0.25]\n",
    },
]  # fmt: skip

NODE = """class Node:
    def __init__(self, value, *below):
        self.value, self.below = value, below

"""
MBPP: list[dict[str, Any]] = [
    {
        "task_id": 601,
        "text": "Write a function to count the vowels of a word.",
        "code": "def vowels(word):\r\n    return sum(letter in 'aeiou' for letter in word)",
        "wrong": "def vowels(word):\n    return len(word)",
        "test_setup_code": "",
        "test_list": ["assert vowels('banana') == 3", "assert vowels('why') == 0"],
        "challenge_test_list": ["assert vowels(None) == 0"],
    },
    {
        "task_id": 602,
        "text": "Write a function to sum the leaves of a \\tree.",
        "code": NODE + "def leaves(node):\n    return sum(map(leaves, node.below)) if node.below else node.value",
        "wrong": NODE + "def leaves(node):\n    return node.value",
        "test_setup_code": "root = Node(1, Node(2), Node(3, Node(4)))",
        "test_list": ["assert leaves(root) == 6"],
        "challenge_test_list": [],
    },
]

SANITIZED_MBPP: list[dict[str, Any]] = [
    {
        "task_id": 603,
        "prompt": "Write a function to find the hypotenuse.",
        "code": "def hypotenuse(a, b):\n    return (a * a + b * b) ** 0.5",
        "wrong": "def hypotenuse(a, b):\n    return a + b",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(hypotenuse(3, 4), 5)"],
    },
]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON lines; return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
