"""Pairs of notations of final answers, of which it is known whether they say the same.

A generator draws values (fractions, lengths, sets, roots, options, names …) and writes each in two
notations; in half of the pairs the second notation is of another value, near the first.
"""

from __future__ import annotations

import random
from fractions import Fraction
from typing import NamedTuple

from reweighting.records.answers.notation import words


class Pair(NamedTuple):
    """Two notations of which it is known whether they say the same."""

    family: str
    predicted: str
    true: str
    choices: list[str] | None
    same: bool


class Generator:
    """Draws pairs of notations; the same seed draws the same pairs.

    Each method ``family_…(alike)`` returns the predicted answer, the true one and, for a question
    with options, their texts.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def pairs(self, count: int) -> list[Pair]:
        """``count`` pairs: families in turn, and equal pairs in turn with unequal ones."""
        families = [getattr(self, name) for name in dir(self) if name.startswith("family_")]
        found = []
        while len(found) < count:
            family = families[len(found) % len(families)]
            alike = len(found) // len(families) % 2 == 0
            predicted, true, *rest = family(alike)
            choices = rest[0] if rest else None
            name = family.__name__.removeprefix("family_").replace("_", " ")
            found.append(Pair(name, self.dress(predicted, choices), true, choices, alike))
        return found

    # -- dressing

    def dress(self, text: str, choices: list[str] | None = None) -> str:
        """The text as a model would put it."""
        latex = "\\" in text or "^" in text
        ways = ["{}", "{}", "{}.", "**{}**", "The answer is {}.", "\\boxed{{{}}}"]
        if latex or text.replace(".", "").isdigit():
            ways += ["${}$", "$${}$$", "\\({}\\)", "\\[ {} \\]", "$\\boxed{{{}}}$"]
        elif not any(c in text for c in "%$<>^°²³×√π±≤≥∪∞½¼¾"):
            ways += ["\\text{{{}}}", "$\\text{{{}}}$", "{} "]
        return self.rng.choice(ways).format(text)

    def pick(self, *options):
        return self.rng.choice(options)

    # -- numbers

    def integer(self, n: int) -> str:
        ways = [str(n)]
        if abs(n) >= 1000:
            ways += [f"{n:,}", f"{n:,}".replace(",", " "), f"{n:,}".replace(",", "\u202f")]
            ways += [f"{n:,}".replace(",", "{,}"), f"{n:,}".replace(",", "\\,")]
        if n < 0:
            ways += [w.replace("-", "−") for w in ways]
        else:
            ways.append(f"{n}.0" if n < 1000 else str(n))
        return self.rng.choice(ways)

    def other(self, n: int) -> int:
        """A number that is easily taken for ``n``."""
        ways = [n + 1, n - 1, n * 10, n + 10, 2 * n + 1] + ([-n] if n else [])
        return self.rng.choice([w for w in ways if w != n])

    def family_integer(self, alike):
        n = self.pick(self.rng.randint(0, 99), self.rng.randint(-9999, 9_999_999))
        m = n if alike else self.other(n)
        return self.integer(m), self.integer(n)

    def fraction(self, q: Fraction) -> str:
        sign, a, b = ("-" if q < 0 else ""), abs(q.numerator), q.denominator
        ways = [f"{sign}{a}/{b}", f"{sign}\\frac{{{a}}}{{{b}}}", f"{sign}\\dfrac{{{a}}}{{{b}}}"]
        ways.append(f"{sign}\\tfrac{{{2 * a}}}{{{2 * b}}}")
        if a < 10 and b < 10:
            ways.append(f"{sign}\\frac{a}{b}")
        if a > b > 1:
            ways += [f"{sign}{a // b} {a % b}/{b}", f"{sign}{a // b}\\frac{{{a % b}}}{{{b}}}"]
        if b in (2, 4, 5, 8, 10, 20):
            ways += [f"{float(q):g}", f"{float(q):.4f}"]
        for glyph, value in {"½": (1, 2), "¼": (1, 4), "¾": (3, 4), "⅓": (1, 3)}.items():
            if (a % b, b) == value:
                ways.append(f"{sign}{a // b or ''}{glyph}")
        return self.rng.choice(ways)

    def some_fraction(self) -> Fraction:
        while True:
            denominator = self.pick(2, 3, 4, 5, 6, 7, 8, 20)
            q = Fraction(self.rng.randint(-40, 60), denominator)
            if q.denominator > 1:
                return q

    def family_fraction(self, alike):
        q = self.some_fraction()
        options = [1 / q, -q, q + 1, q + Fraction(1, q.denominator), q / 2]
        others = [o for o in options if o.denominator > 1 and o != q] or [q + 1]
        return self.fraction(q if alike else self.rng.choice(others)), self.fraction(q)

    def percent(self, p: Fraction) -> str:
        number = f"{float(p):g}"
        ways = [f"{number}%", f"{number} %", f"{number}\\%", f"{number} percent"]
        return self.pick(*ways, f"{float(p / 100):.6g}")

    def family_percent(self, alike):
        p = Fraction(self.rng.randint(1, 199), self.pick(1, 2, 4))
        q = p if alike else self.rng.choice([p + 1, p * 10, p + 5])
        return self.percent(q), self.percent(p)

    def family_scientific(self, alike):
        digits, power = self.rng.randint(11, 99) / 10, self.pick(-9, -6, -3, 3, 5, 8, 23)
        wrong = ((digits, -power), (round(digits + 1, 1), power), (digits, power + 1))
        other_digits, other_power = (digits, power) if alike else self.pick(*wrong)

        def write(d, e):
            ways = [f"{d} \\times 10^{{{e}}}", f"{d} × 10^{e}", f"{d}e{e}", f"{d} x 10^{e}"]
            raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
            ways.append(f"{d}·10" + str(e).translate(raised))
            ways.append(f"{d}*10^({e})")
            if 0 < e < 6:
                ways.append(f"{round(d * 10**e):,}")
            return self.rng.choice(ways)

        return write(other_digits, other_power), write(digits, power)

    def family_magnitude(self, alike):
        n = self.rng.randint(2, 90)
        scale, factor = self.pick(("thousand", 10**3), ("million", 10**6), ("billion", 10**9))
        spoken, figures = f"{n} {scale}", self.integer(n * factor)
        if not alike:
            longer = str(n * factor * 10)
            return self.pick((str(n), spoken), (f"{n + 1} {scale}", figures), (spoken, longer))
        return self.pick((spoken, figures), (figures, spoken), (f"{n}.0 {scale}", spoken))

    def family_number_word(self, alike):
        names = words("zero one two three four five six seven eight nine ten eleven twelve")
        n = self.rng.randint(0, 12)
        m = n if alike else (n + self.rng.randint(1, 12)) % 13
        return self.pick(names[m], names[m].capitalize(), str(m)), self.pick(names[n], str(n))

    # -- units

    UNITS = (
        (("cm", "centimeters", "centimetres"), ("m", "meters"), 100),
        (("g", "grams"), ("kg", "kilograms"), 1000),
        (("min", "minutes"), ("hours", "h"), 60),
        (("mL", "milliliters"), ("L", "liters"), 1000),
    )

    def measured(self, number: str, unit: str) -> str:
        ways = [f"{number} {unit}", f"{number}\\text{{ {unit}}}", f"{number}~\\mathrm{{{unit}}}"]
        return self.rng.choice([*ways, f"{number}{unit}"] if len(unit) < 3 else ways)

    def family_unit(self, alike):
        small_units, large_units, factor = self.rng.choice(self.UNITS)
        small = lambda n: self.measured(str(n), self.rng.choice(small_units))  # noqa: E731
        large = lambda n: self.measured(str(n), self.rng.choice(large_units))  # noqa: E731
        n = self.rng.randint(2, 900)
        if alike:
            return self.pick(
                (small(n), small(n)),
                (str(n), small(n)),
                (small(n * factor), large(n)),
                (large(n), str(n)),
            )
        return self.pick(
            (large(n), small(n)),
            (small(n + 1), small(n)),
            (self.measured(str(n), "s"), small(n)),
            (str(n + 10), large(n)),
        )

    def family_compound_unit(self, alike):
        n = self.rng.randint(2, 200)
        area = ("cm^2", "cm²", "square centimeters", "cm^{2}", "sq cm")
        volume = ("m^3", "m³", "cubic meters", "m^{3}")
        speed = ("m/s", "meters per second", "m s^{-1}", "m/sec")
        kmh = ("km/h", "km per hour", "kilometers per hour", "km/hr")
        group = self.pick(area, volume, speed, kmh)
        others = [g for g in (area, volume, speed, kmh) if g is not group]
        m = n
        unit = self.rng.choice(group)
        if not alike:
            m, unit = self.pick((n + 1, unit), (n, self.rng.choice(self.rng.choice(others))))
        return f"{m} {unit}", f"{n} {self.rng.choice(group)}"

    def family_angle(self, alike):
        n = self.pick(30, 45, 60, 90, 120, 135, 72.5)
        m = n if alike else self.pick(n + 1, n / 2, 180 - n + 1)
        ways = ["{:g}°", "{:g}^\\circ", "{:g}^{{\\circ}}", "{:g} degrees", "{:g} deg"]
        return self.rng.choice(ways).format(m), self.rng.choice(ways).format(n)

    def family_money(self, alike):
        draw = self.rng.randint
        n = self.pick(draw(2, 99), draw(1000, 99999), draw(100, 9999) / 100)
        m = n if alike else self.pick(n + 1, n * 10)
        ways = ["${:,}", "\\${:,}", "{:,} dollars", "{:,} USD", "${}"]
        return self.rng.choice(ways).format(m), self.rng.choice(ways).format(n)

    def family_counted(self, alike):
        thing = self.pick("apple", "student", "red ball", "triangle")
        n = self.rng.randint(2, 40)
        if alike:
            return self.pick(f"{n} {thing}s", f"{n}"), f"{n} {thing}s"
        wrong = (f"{n + 1} {thing}s", f"less than {n} {thing}s", f"{n} or {n + 1}", f"not {n}")
        return self.pick(*wrong), f"{n} {thing}s"

    # -- expressions

    def family_root(self, alike):
        a, b = self.rng.randint(2, 9), self.pick(2, 3, 5, 6, 7)
        c, d = (a, b) if alike else self.pick((a + 1, b), (a, 11), (1, b))
        if not alike and c == 1:
            return f"\\sqrt{{{b}}}", f"{a}\\sqrt{{{b}}}"
        ways = ["{a}\\sqrt{{{b}}}", "{a}√{b}", "{a}\\sqrt{b}", "{a}*sqrt({b})", "\\sqrt{{{s}}}"]
        ways.append("{a} \\cdot \\sqrt{{{b}}}")
        write = lambda a, b: self.rng.choice(ways).format(a=a, b=b, s=a * a * b)  # noqa: E731
        return write(c, d), write(a, b)

    def family_pi(self, alike):
        a = self.pick(2, 3, 4, 5, 12, 25)
        b = a if alike else self.pick(a + 1, a * 2)
        ways = ["{}\\pi", "{}π", "{}pi", "{} \\cdot \\pi", "{} \\pi", "\\pi \\cdot {}"]
        if not alike and self.rng.random() < 0.3:
            return str(a), self.rng.choice(ways).format(a)
        return self.rng.choice(ways).format(b), self.rng.choice(ways).format(a)

    def family_pi_fraction(self, alike):
        a, b = self.rng.randint(1, 5), self.pick(6, 7, 11)
        c = a if alike else a + 1
        ways = ["\\frac{{{}\\pi}}{{{}}}", "{}\\pi/{}", "\\dfrac{{{}}}{{{}}}\\pi", "{}π/{}"]
        return self.rng.choice(ways).format(c, b), self.rng.choice(ways).format(a, b)

    def family_polynomial(self, alike):
        a, b = self.rng.randint(1, 9), self.rng.randint(2, 9)
        x = self.pick("x", "t", "n")
        expanded = [f"{x}^2+{a + b}{x}+{a * b}", f"{a * b} + {a + b}{x} + {x}^{{2}}"]
        factored = [f"({x}+{a})({x}+{b})", f"({x} + {b})({x} + {a})"]
        if alike:
            return self.rng.choice(factored + expanded), self.rng.choice(expanded)
        wrong = [f"({x}-{a})({x}+{b})", f"({x}+{a})({x}+{b + 1})"]
        wrong += [f"{x}^2-{a + b}{x}+{a * b}", f"{x}^3+{a + b}{x}+{a * b}"]
        return self.rng.choice(wrong), self.rng.choice(expanded)

    def family_linear(self, alike):
        a, b = self.rng.randint(2, 9), self.rng.randint(1, 9)
        true = self.pick(f"y = {a}x + {b}", f"{a}x + {b}")
        if alike:
            return self.pick(f"y = {a}x+{b}", f"y={b}+{a}x", f"{a}x+{b}", f"{b} + {a}x"), true
        wrong = [f"y = {a}x-{b}", f"{a + 1}x+{b}", f"{b}x+{a}x", f"{a}x", f"{a}", f"x = {a}y + {b}"]
        return self.rng.choice(wrong), true

    def family_assignment(self, alike):
        n, name = self.rng.randint(2, 99), self.pick("x", "y", "n", "\\theta", "AB", "f(2)")
        if alike:
            said = self.pick(f"{name} = {n}", f"{name}={n}", f"{name} = {n}.0", str(n))
            return said, self.pick(f"{name} = {n}", f"{name}={n}")
        wrong = (f"{name} = {n + 1}", f"z = {n}", f"{name} > {n}", f"{name} = -{n}")
        return self.pick(*wrong), f"{name} = {n}"

    def family_inequality(self, alike):
        n, x = self.rng.randint(-9, 40), self.pick("x", "a", "t")
        relation, swapped, latex, plain, opposite = self.pick(
            (">", "<", "\\gt", ">", "<"),
            ("\\geq", "\\leq", "\\ge", "≥", "\\leq"),
            ("<", ">", "\\lt", "<", ">"),
            ("\\leq", "\\geq", "\\le", "≤", "\\geq"),
        )
        true = self.pick(f"{x} {relation} {n}", f"{x} {latex} {n}")
        if alike:
            return self.pick(f"{x} {plain} {n}", f"{n} {swapped} {x}", f"{x}{plain}{n}"), true
        strict = {">": "≥", "<": "≤", "\\geq": ">", "\\leq": "<"}[relation]
        wrong = [f"{x} {opposite} {n}", f"{x} {plain} {n + 1}", f"{x} = {n}", f"{x} {strict} {n}"]
        return self.pick(*wrong, f"{n} {opposite} y"), true

    def family_interval(self, alike):
        a, b = self.rng.randint(-9, 5), self.rng.randint(6, 20)
        left, right = self.pick(("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"))
        ways = ("{}{}, {}{}", "\\left{}{}, {}\\right{}", "{}{},{}{}", "{} {} , {} {}")
        write = lambda a, b, left, right: self.pick(*ways).format(left, a, b, right)  # noqa: E731
        if alike:
            return write(a, b, left, right), write(a, b, left, right)
        other = self.rng.choice(
            [p for p in (("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")) if p != (left, right)]
        )
        wrong = (write(a, b + 1, left, right), write(a, b, *other), write(b, a, left, right))
        return self.pick(*wrong), write(a, b, left, right)

    def family_union(self, alike):
        a, b = self.rng.randint(-9, 0), self.rng.randint(1, 9)
        ways = [
            "(-\\infty, {a}) \\cup ({b}, \\infty)",
            "(−∞, {a}) ∪ ({b}, ∞)",
            "(-\\infty,{a})\\cup({b},+\\infty)",
            "({b}, \\infty) \\cup (-\\infty, {a})",
        ]
        c, d = (a, b) if alike else self.pick((a - 1, b), (a, b + 1))
        if not alike and self.rng.random() < 0.4:
            return f"({a}, {b})", self.rng.choice(ways).format(a=a, b=b)
        return self.rng.choice(ways).format(a=c, b=d), self.rng.choice(ways).format(a=a, b=b)

    def family_set(self, alike):
        values = self.rng.sample(range(-9, 30), self.rng.randint(2, 4))
        shuffled = self.rng.sample(values, len(values))

        def write(v):
            inner = ", ".join(map(str, v))
            return self.pick(
                f"\\{{{inner}\\}}",
                inner,
                inner.replace(", ", ","),
                "\\left\\{" + inner + "\\right\\}",
                " and ".join(inner.rsplit(", ", 1)),
            )

        if alike:
            return write(shuffled), write(values)
        wrong = self.pick(values[:-1], [*values, 31], [*values[:-1], values[-1] + 40])
        return write(wrong), write(values)

    def family_roots_of_equation(self, alike):
        a, b = self.rng.sample(range(1, 20), 2)
        true = self.pick(f"x = {a}, x = {b}", f"{a}, {b}", f"x = {a} \\text{{ or }} x = {b}")
        if alike:
            right = (f"x = {b} or x = {a}", f"{b} and {a}", f"x = {a}, {b}", f"\\{{{a}, {b}\\}}")
            return self.pick(*right, f"x={b}, x={a}"), true
        return self.pick(f"x = {a}", f"x = {a} or x = {b + 20}", f"{a}", f"x = -{a}, x = {b}"), true

    def family_plus_minus(self, alike):
        n = self.rng.randint(2, 30)
        true = self.pick(f"\\pm {n}", f"±{n}", f"{n}, -{n}")
        if alike:
            right = (f"\\pm{n}", f"± {n}", f"-{n}, {n}", f"{n} and -{n}", f"x = \\pm {n}")
            return self.pick(*right), true
        return self.pick(f"{n}", f"-{n}", f"\\pm {n + 1}", f"{n}, {n + 1}"), true

    def family_tuple(self, alike):
        values = self.rng.sample(range(-9, 30), self.pick(2, 3))
        ways = ["({})", "\\left({}\\right)", "( {} )"]
        write = lambda v, sep: self.rng.choice(ways).format(sep.join(map(str, v)))  # noqa: E731
        wrong = (values[::-1], [*values[:-1], values[-1] + 1], [*values, 5])
        other = values if alike else self.pick(*wrong)
        return write(other, self.pick(", ", ",")), write(values, self.pick(", ", ","))

    def family_ratio(self, alike):
        a, b = self.rng.sample(range(2, 20), 2)
        if alike:
            return self.pick(f"{a}:{b}", f"{a} : {b}"), self.pick(f"{a}:{b}", f"{a} : {b}")
        return self.pick(f"{b}:{a}", f"{a}:{b + 20}", f"{a}"), f"{a}:{b}"

    def family_power(self, alike):
        a, b = self.pick(2, 3, 5, 7), self.rng.randint(2, 9)
        true = self.pick(f"{a}^{{{b}}}", f"{a}^{b}", str(a**b))
        if alike:
            return self.pick(f"{a}^{b}", str(a**b), f"{a**b:,}"), true
        return self.pick(f"{a}^{b + 1}", str(a * b) if a * b != a**b else "1", f"{a**b + 1}"), true

    # -- options

    COLOURS = ("red", "blue", "green", "yellow", "black", "white")

    def option(self, letter: str, text: str) -> str:
        ways = ["{l}", "({l})", "{l}.", "{l}. {t}", "({l}) {t}", "{l}: {t}", "{l}) {t}"]
        ways += ["Option {l}", "option ({l})", "[{l}]", "{t}"]
        return self.rng.choice(ways).format(l=letter, t=text)

    def family_letter(self, alike):
        choices = self.rng.sample(self.COLOURS, 4)
        index = self.rng.randrange(4)
        other = index if alike else (index + self.rng.randint(1, 3)) % 4
        true = self.pick("ABCD"[index], f"({'ABCD'[index]})", choices[index])
        return self.option("ABCD"[other], choices[other]), true, choices

    def family_letter_without_options(self, alike):
        index = self.rng.randrange(5)
        other = index if alike else (index + self.rng.randint(1, 4)) % 5
        letter = "ABCDE"[other]
        ways = ("{}", "({})", "{}.", "Option {}", "{}) something", "option {}", "({}) 12 cm")
        return self.pick(*ways).format(letter), "ABCDE"[index]

    def family_letter_set(self, alike):
        letters = sorted(self.rng.sample("ABCDE", self.rng.randint(2, 3)))
        choices = self.pick(None, list(self.COLOURS[:5]))

        def write(chosen):
            brackets = [f"({c})" for c in chosen]
            spoken = " and ".join([", ".join(chosen[:-1]), chosen[-1]][-len(chosen) :])
            ways = [", ".join(chosen), ",".join(chosen), ", ".join(brackets), spoken]
            ways += [" and ".join(brackets), "; ".join(chosen)]
            return self.rng.choice(ways)

        if alike:
            return write(self.rng.sample(letters, len(letters))), write(letters), choices
        rest = [c for c in "ABCDE" if c not in letters]
        wrong = self.pick(letters[:1], letters[:-1], [*letters, rest[0]], [*letters[:-1], rest[0]])
        said, true = self.pick((wrong, letters), (letters, letters[:1]))
        return write(said), write(true), choices

    def family_option_by_value(self, alike):
        values = self.rng.sample(range(2, 60), 4)
        kind = self.pick("length", "angle", "half", "root")
        writers = {
            "length": (["{} cm"], ["{}", "{} cm", "{} centimeters", "{}\\text{{ cm}}"]),
            "angle": (["{}°", "{}^\\circ"], ["{} degrees", "{}°", "{}^{{\\circ}}", "{}"]),
            "half": (["{}/61"], ["\\frac{{{}}}{{61}}", "{}/61", "\\dfrac{{{}}}{{61}}"]),
            "root": (["\\sqrt{{{}}}"], ["√{}", "\\sqrt{{{}}}", "sqrt({})"]),
        }[kind]
        choices = [self.rng.choice(writers[0]).format(v) for v in values]
        index = self.rng.randrange(4)
        other = index if alike else (index + self.rng.randint(1, 3)) % 4
        return self.rng.choice(writers[1]).format(values[other]), "ABCD"[index], choices

    # -- words

    NAMES = (
        *("isosceles triangle", "Mount Everest", "photosynthesis", "carbon dioxide", "Paris"),
        *("the mitochondrion", "a red circle", "North", "William Shakespeare", "increasing"),
        *("CO2", "H2O"),
    )

    def family_words(self, alike):
        name = self.rng.choice(self.NAMES)
        other = name if alike else self.rng.choice([n for n in self.NAMES if n != name])
        bare = other.removeprefix("the ").removeprefix("a ")
        return self.pick(other, bare, other.capitalize() if other.islower() else other, bare), name

    def family_yes_no(self, alike):
        true = self.pick("Yes", "No", "yes", "no")
        said = true.lower() if alike else {"yes": "no", "no": "yes"}[true.lower()]
        capital = said.capitalize()
        return self.pick(said, capital, said.upper(), f"{capital}, it is so"), true
