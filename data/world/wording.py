"""How the demo world words its questions and steps, in two styles."""

from __future__ import annotations

# Per question type and style: the question, then steps 1 to 4.
WORDING: dict[str, tuple[tuple[str, ...], ...]] = {
    "colour_cell": (
        (
            "What is the colour in {c}?",
            "the question asks for the colour in {c}.",
            "In {c} I see {e}.",
            "The colour is that of the named cell.",
            "The cell is {e}, so the colour is {v}.",
        ),
        (
            "Name the colour found at {c}.",
            "we must name the colour found at {c}.",
            "The picture shows {e} at {c}.",
            "Only the colour of this cell counts.",
            "Since {e} is there, the colour must be {v}.",
        ),
    ),
    "shape_cell": (
        (
            "What is the shape in {c}?",
            "the question asks for the shape in {c}.",
            "In {c} I see a {e}.",
            "The shape is that of the named cell.",
            "The cell holds a {e}, so the shape is a {v}.",
        ),
        (
            "Name the shape found at {c}.",
            "we must name the shape found at {c}.",
            "The picture shows a {e} at {c}.",
            "Only the shape of this cell counts.",
            "Since a {e} is there, the shape must be a {v}.",
        ),
    ),
    "row_of": (
        (
            "Which row holds the {x}?",
            "the question asks for the row of the {x}.",
            "I see the {x} in {e}.",
            "Rows are lettered from the top.",
            "The {x} is in {e}, so the row is {v}.",
        ),
        (
            "Name the row where the {x} is found.",
            "we must name the row of the {x}.",
            "The picture shows the {x} at {e}.",
            "The top row is row A.",
            "Since the {x} is at {e}, the row must be {v}.",
        ),
    ),
    "taller_bar": (
        (
            "Which bar is {w}, {c} or {d}?",
            "the question asks which bar is {w}, {c} or {d}.",
            "The bar in {c} has level {e} and the bar in {d} has level {f}.",
            "A higher level means a taller bar.",
            "Level {e} against level {f}, so the {w} bar is in {v}.",
        ),
        (
            "Name the {w} bar of {c} and {d}.",
            "we must name the {w} bar of {c} and {d}.",
            "The picture shows level {e} at {c} and level {f} at {d}.",
            "Taller bars have higher levels.",
            "Since the levels are {e} and {f}, the {w} bar must be in {v}.",
        ),
    ),
    "bar_height": (
        (
            "What is the level of the bar in {c}?",
            "the question asks for the level of the bar in {c}.",
            "The bar in {c} has level {e}.",
            "A full bar has level 5.",
            "The bar has level {e}, so the level is {v}.",
        ),
        (
            "Name the level of the bar at {c}.",
            "we must name the level of the bar at {c}.",
            "The picture shows level {e} at {c}.",
            "No bar is higher than level 5.",
            "Since the bar has level {e}, the level must be {v}.",
        ),
    ),
    "table_digit": (
        (
            "What is the digit in {c}?",
            "the question asks for the digit in {c}.",
            "In {c} I see the digit {e}.",
            "The digit is that of the named cell.",
            "The cell shows {e}, so the digit is {v}.",
        ),
        (
            "Name the digit found at {c}.",
            "we must name the digit found at {c}.",
            "The picture shows the digit {e} at {c}.",
            "Only the digit of this cell counts.",
            "Since {e} is there, the digit must be {v}.",
        ),
    ),
    "digit_sum": (
        (
            "What is the sum of the digits in {c} and {d}?",
            "the question asks for the sum of the digits in {c} and {d}.",
            "The digit in {c} is {e} and the digit in {d} is {f}.",
            "A sum adds both digits.",
            "The digits are {e} and {f}, so the sum is {v}.",
        ),
        (
            "Name the sum of the digits at {c} and {d}.",
            "we must name the sum of the digits at {c} and {d}.",
            "The picture shows the digit {e} at {c} and the digit {f} at {d}.",
            "Both digits are added.",
            "Since the digits are {e} and {f}, the sum must be {v}.",
        ),
    ),
    "polygon_sides": (
        (
            "How many sides has the shape in {c}?",
            "the question asks for the number of sides in {c}.",
            "In {c} I see a {e}.",
            "A triangle has 3 sides, a square 4, a pentagon 5, a hexagon 6.",
            "The shape is a {e}, so the number of sides is {v}.",
        ),
        (
            "Name the number of sides of the shape at {c}.",
            "we must name the number of sides at {c}.",
            "The picture shows a {e} at {c}.",
            "The sides are 3 for a triangle, 4 for a square, 5 for a pentagon, 6 for a hexagon.",
            "Since a {e} is there, the number of sides must be {v}.",
        ),
    ),
    "arrow_end": (
        (
            "Which colour do the arrows reach from {c} in {m}?",
            "the question asks for the colour reached from {c} in {m}.",
            "From {c} the arrows point {e}.",
            "Each arrow leads to the next cell.",
            "The path goes {e}, so the colour reached is {v}.",
        ),
        (
            "Name the colour that {m} along the arrows from {c} reach.",
            "we must name the colour reached in {m} from {c}.",
            "The picture shows arrows that point {e} from {c}.",
            "A move goes to the next cell.",
            "Since the path goes {e}, the colour reached must be {v}.",
        ),
    ),
    "larger_cell": (
        (
            "Which shape is {w}, {c} or {d}?",
            "the question asks which shape is {w}, {c} or {d}.",
            "The shape in {c} is {e} and the shape in {d} is {f}.",
            "The size is the space a shape takes.",
            "One is {e} and one is {f}, so the {w} shape is in {v}.",
        ),
        (
            "Name the {w} shape of {c} and {d}.",
            "we must name the {w} shape of {c} and {d}.",
            "The picture shows a {e} shape at {c} and a {f} shape at {d}.",
            "A large shape takes more space.",
            "Since the sizes are {e} and {f}, the {w} shape must be in {v}.",
        ),
    ),
}
