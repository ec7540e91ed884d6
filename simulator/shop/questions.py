"""What people type into the built-in shop, and what they mean by it.

Each class has its own way of asking; the meaning (`Intent`) is kept apart from the words. The two splits share
no intent: what a test query means was never typed, though its parts (a family, a type, a purpose) were.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from string import Formatter
from typing import Any, Final

from simulator.shop.catalogue import Made
from simulator.shop.lexicon import Family, Lexicon
from simulator.shop.world import Query, Split, popularity_of

CLASS_SIZES: Final[Mapping[str, int]] = {
    "plain": 130,
    "vague": 110,
    "constrained": 90,
    "budget": 100,
    "use_case": 110,
    "multi_intent": 50,
    "ambiguous_line": 40,
    "mixed_language": 90,
    "new_launch": 50,
    "priority": 40,
    "exact": 80,
}
TEST_SHARE: Final = 1 / 3
RARE: Final = 4
"""A model number is typed as rarely as a query of so many more words."""
MEANT: Final[Mapping[str, str]] = {
    "kind": "type_name", "size": "size", "brand": "brand", "feature": "feature",
    "cap": "price_cap", "typed_cap": "price_cap",
}  # fmt: skip
"""What a way to ask mentions -> what it then means."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What a query means. Names are those of the lexicon; `families` is empty for a bare line name."""

    families: tuple[str, ...] = ()
    type_name: str | None = None
    size: float | None = None
    brand: str | None = None
    feature: str | None = None
    uses: tuple[str, ...] = ()
    line: str | None = None
    tier: str | None = None
    number: str | None = None
    """Of the one model that is meant."""
    new: bool = False
    assured: bool = False
    cheap: bool = False
    hindi: bool = False
    strict: bool = field(default=False, compare=False)
    """True if a product that breaks a wish is useless, not only worse."""
    price_cap: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Question:
    """A query of the world with its meaning."""

    query: Query
    intent: Intent


Asked = tuple[str, Intent]


class QuestionMaker:
    """Makes the queries of one seed about a catalogue."""

    def __init__(self, words: Lexicon, seed: int, products: Sequence[Made]) -> None:
        self._words = words
        self._rng = Random(f"questions:{seed}")
        self._models = list({made.number: made for made in products if made.number}.values())
        self._special = {
            "multi_intent": self._multi_intent,
            "ambiguous_line": self._ambiguous_line,
            "exact": self._exact,
        }

    def make(self) -> tuple[Question, ...]:
        """Make all queries, class by class, with their split and popularity."""
        asked = [(name, text, intent) for name in CLASS_SIZES for text, intent in self._distinct(name)]
        unique = list({text: (name, text, intent) for name, text, intent in reversed(asked)}.values())[::-1]
        splits = self._splits([(name, intent) for name, _, intent in unique])
        ranks = self._ranks([(text, intent) for _, text, intent in unique])
        return tuple(
            Question(
                Query(
                    query_id=f"Q-{number + 1:04d}",
                    query=text,
                    query_class=name,
                    split=split,
                    locale="hi-IN" if intent.hindi else "en-IN",
                    popularity=popularity_of(rank),
                ),
                intent,
            )
            for number, ((name, text, intent), split, rank) in enumerate(zip(unique, splits, ranks, strict=True))
        )

    def _ranks(self, asked: Sequence[Asked]) -> list[int]:
        """Give each query its rank by popularity: few words mostly come first, one model's number late."""
        keys = [
            len(text.split()) + (0 if intent.number is None else RARE) + self._rng.gauss(0, 2) for text, intent in asked
        ]
        ranks = [0] * len(asked)
        for rank, place in enumerate(sorted(range(len(asked)), key=lambda one: keys[one])):
            ranks[place] = rank
        return ranks

    def _distinct(self, name: str) -> Iterator[Asked]:
        seen: set[str] = set()
        while len(seen) < CLASS_SIZES[name]:
            text, intent = self._special[name]() if name in self._special else self._templated(name)
            if text not in seen:
                seen.add(text)
                yield text, intent

    def _splits(self, asked: list[tuple[str, Intent]]) -> list[Split]:
        """Give whole intents to one split, the test's share class by class."""
        groups: dict[Intent, list[int]] = {}
        for number, (_, intent) in enumerate(asked):
            groups.setdefault(intent, []).append(number)
        wanted = {name: TEST_SHARE * sum(other == name for other, _ in asked) for name in CLASS_SIZES}
        splits: list[Split] = ["train"] * len(asked)
        for intent in self._rng.sample(list(groups), len(groups)):
            if wanted[asked[groups[intent][0]][0]] < 1:
                continue
            for number in groups[intent]:
                splits[number] = "test"
                wanted[asked[number][0]] -= 1
        return splits

    def _templated(self, name: str) -> Asked:
        """Say it in one of the ways of a class; what the way mentions is what is meant."""
        asked = self._words.questions[name]
        family, word = self._family()
        drawn: dict[str, Any] = {
            "word": word,
            "unit": family.sizes.word,
            "article": "an" if word[0] in "aeiou" else "a",
        }
        for part in asked.draws:
            self._draw(part, family, drawn)
        ways, weights = asked.ways, asked.weights
        way = self._rng.choices(ways, weights=weights)[0] if weights else self._rng.choice(ways)
        said = {part for _, part, _, _ in Formatter().parse(way) if part}
        meant = {meaning: drawn[part] for part, meaning in MEANT.items() if part in said}
        uses = [drawn["use"]] if said & {"phrase", "purpose"} else []
        uses += [drawn["other"]] if "also" in said else []
        if said & {"cheap", "cap"}:
            meant["cheap"] = True
        if "new" in said:
            meant["new"] = True
        text = way.format(**drawn)
        intent = Intent((family.key,), uses=tuple(uses), **{**meant, **asked.means})
        return text if asked.keeps_case else text.lower(), intent

    def _draw(self, part: str, family: Family, drawn: dict[str, Any]) -> None:
        """Draw a part of what could be said."""
        rng, words = self._rng, self._words
        match part:
            case "kind":
                kind = rng.choice(family.types)
                drawn["kind"], drawn["price_factor"] = kind.name, kind.price_factor
            case "use":
                drawn["use"] = rng.choice(family.uses)
            case "two_uses":
                drawn["use"], drawn["other"] = rng.sample(family.uses, 2)
            case "need":
                need = drawn["need"] = rng.choice(family.vague)
                drawn["errand"] = f"something to {need}" if need.split()[0] in words.words["verbs"] else need
            case "cap":
                drawn["cap"] = self._cap(family.price)
            case "typed_cap":
                drawn["typed_cap"] = self._cap(family.price * drawn["price_factor"])
            case _:
                choices: Mapping[str, Sequence[Any]] = {
                    "size": family.sizes.values,
                    "feature": [feature.name for feature in family.features],
                    "brand": words.brands[family.group],
                    "phrase": words.uses[drawn["use"]].phrases if "use" in drawn else (),
                    "also": words.uses[drawn["other"]].phrases if "other" in drawn else (),
                    "purpose": words.uses[drawn["use"]].hindi if "use" in drawn else (),
                }
                drawn[part] = rng.choice(choices.get(part) or words.hindi[part])

    def _multi_intent(self) -> Asked:
        family, word = self._family()
        shared = [
            other for other in self._words.families if other.key != family.key and other.path[0] == family.path[0]
        ]
        other = self._rng.choice(shared)
        both, second = (family.key, other.key), self._rng.choice(other.words)
        common = [key for key in family.uses if key in other.uses]
        if not common or self._rng.random() < 0.4:
            return self._rng.choice((f"{word} and {second}", f"{word} plus {second} combo")), Intent(both)
        use = self._words.uses[self._rng.choice(common)]
        return f"{word} and {second} {self._rng.choice(use.phrases)}", Intent(both, uses=(use.key,))

    def _ambiguous_line(self) -> Asked:
        line = self._rng.choice(self._words.words["lines"])
        tier = self._rng.choice(list(self._words.tiers))
        return f"{line} {tier}".strip().lower(), Intent(line=line, tier=tier or None)

    def _exact(self) -> Asked:
        """Type a model number, as printed or as people copy it."""
        model = self._rng.choice(self._models)
        family = self._words.families[model.family]
        number = self._rng.choice((model.number, model.number.replace("-", ""), model.number.replace("-", " ")))
        way = self._rng.choice(("{number}", "{brand} {number}", "{number} {word}", "{line} {number}"))
        text = way.format(number=number, brand=model.brand, line=model.line, word=self._rng.choice(family.words))
        return text.lower(), Intent((family.key,), number=model.number, brand=model.brand)

    def _family(self) -> tuple[Family, str]:
        family = self._rng.choice(self._words.families)
        return family, self._rng.choice(family.words)

    def _cap(self, price: float) -> float:
        step = 10 ** max(2, len(f"{price:.0f}") - 2)
        return float(max(1, round(price * self._rng.choice((0.6, 0.75, 0.9, 1.1)) / step)) * step)
