"""What people type into the built-in shop, and what they mean by it.

Each class has its own way of asking; the meaning (`Intent`) is kept apart from the words. The two splits share
no intent: what a test query means was never typed, though its parts (a family, a type, a purpose) were.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from simulator.shop.lexicon import Family, Lexicon, UseCase
from simulator.shop.world import Query, Split

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
}
TEST_SHARE: Final = 1 / 3


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
    """Makes the queries of one seed."""

    def __init__(self, words: Lexicon, seed: int) -> None:
        self._words = words
        self._rng = Random(f"questions:{seed}")
        self._ways: Mapping[str, Callable[[], Asked]] = {
            "plain": self._plain,
            "vague": self._vague,
            "constrained": self._constrained,
            "budget": self._budget,
            "use_case": self._use_case,
            "multi_intent": self._multi_intent,
            "ambiguous_line": self._ambiguous_line,
            "mixed_language": self._mixed_language,
            "new_launch": self._new_launch,
            "priority": self._priority,
        }

    def make(self) -> tuple[Question, ...]:
        """Make all queries, class by class, with their split and popularity."""
        asked = [(name, text, intent) for name in CLASS_SIZES for text, intent in self._distinct(name)]
        unique = list({text: (name, text, intent) for name, text, intent in reversed(asked)}.values())[::-1]
        splits = self._splits([(name, intent) for name, _, intent in unique])
        ranks = self._rng.sample(range(len(unique)), len(unique))
        return tuple(
            Question(
                Query(
                    query_id=f"Q-{number + 1:04d}",
                    query=text,
                    query_class=name,
                    split=split,
                    locale="hi-IN" if intent.hindi else "en-IN",
                    popularity=round(1 / (1 + rank) ** 0.5, 4),
                ),
                intent,
            )
            for number, ((name, text, intent), split, rank) in enumerate(zip(unique, splits, ranks, strict=True))
        )

    def _distinct(self, name: str) -> Iterator[Asked]:
        seen: set[str] = set()
        while len(seen) < CLASS_SIZES[name]:
            text, intent = self._ways[name]()
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

    def _plain(self) -> Asked:
        family, word = self._family()
        kind = self._rng.choice(family.types).name
        size = self._rng.choice(family.sizes.values)
        feature = self._rng.choice(family.features).name
        brand = self._rng.choice(self._words.brands[family.group])
        ways = (
            (f"{kind} {word}", Intent((family.key,), type_name=kind)),
            (f"{size:g} {family.sizes.word} {word}", Intent((family.key,), size=size)),
            (f"{brand} {word}", Intent((family.key,), brand=brand)),
            (f"{word} with {feature}", Intent((family.key,), feature=feature)),
            (f"{size:g} {family.sizes.word} {kind} {word}", Intent((family.key,), type_name=kind, size=size)),
            (word, Intent((family.key,))),
        )
        return self._lower(self._rng.choices(ways, weights=[5, 3, 3, 3, 2, 1])[0])

    def _vague(self) -> Asked:
        family, word = self._family()
        use = self._use(family)
        phrase = self._rng.choice(use.phrases)
        need = self._rng.choice(family.vague)
        ways = (
            (f"{word} {phrase}", Intent((family.key,), uses=(use.key,))),
            (f"good {word} {phrase}", Intent((family.key,), uses=(use.key,))),
            (f"{need} {phrase}", Intent((family.key,), uses=(use.key,))),
            (f"something to {need}" if need.split()[0] in self._words.words["verbs"] else need, Intent((family.key,))),
        )
        return self._rng.choices(ways, weights=[6, 3, 3, 1])[0]

    def _constrained(self) -> Asked:
        family, word = self._family()
        kind = self._rng.choice(family.types).name
        size = self._rng.choice(family.sizes.values)
        feature = self._rng.choice(family.features).name
        brand = self._rng.choice(self._words.brands[family.group])
        ways = (
            (f"{size:g} {family.sizes.word} {kind} {word} only", Intent((family.key,), kind, size, strict=True)),
            (f"only {kind} {word} with {feature}", Intent((family.key,), kind, feature=feature, strict=True)),
            (f"{word} strictly {size:g} {family.sizes.word}", Intent((family.key,), size=size, strict=True)),
            (f"{brand} {word} no other brand", Intent((family.key,), brand=brand, strict=True)),
            (f"{feature} {word} must be {kind}", Intent((family.key,), kind, feature=feature, strict=True)),
        )
        return self._lower(self._rng.choice(ways))

    def _budget(self) -> Asked:
        family, word = self._family()
        use = self._use(family)
        kind = self._rng.choice(family.types)
        cap = self._cap(family.price)
        typed_cap = self._cap(family.price * kind.price_factor)
        phrase = self._rng.choice(use.phrases)
        one, fit = (family.key,), (use.key,)
        ways = (
            (f"{word} under {cap:.0f}", Intent(one, cheap=True, price_cap=cap)),
            (f"best {word} below {cap:.0f} {phrase}", Intent(one, uses=fit, cheap=True, price_cap=cap)),
            (f"cheap {word} {phrase}", Intent(one, uses=fit, cheap=True)),
            (f"{kind.name} {word} under {typed_cap:.0f}", Intent(one, kind.name, cheap=True, price_cap=typed_cap)),
            (f"budget {word} {phrase} within {cap:.0f}", Intent(one, uses=fit, cheap=True, price_cap=cap)),
        )
        return self._lower(self._rng.choice(ways))

    def _use_case(self) -> Asked:
        family, word = self._family()
        first, second = self._rng.sample(family.uses, 2)
        use, other = self._words.uses[first], self._words.uses[second]
        kind = self._rng.choice(family.types).name
        phrase, also = self._rng.choice(use.phrases), self._rng.choice(other.phrases)
        one, article = (family.key,), "an" if word[0] in "aeiou" else "a"
        ways = (
            (f"which {word} is best {phrase}", Intent(one, uses=(use.key,))),
            (f"{kind} {word} {phrase}", Intent(one, kind, uses=(use.key,))),
            (f"{word} {phrase} and {also}", Intent(one, uses=(use.key, other.key))),
            (f"i need {article} {word} {phrase}", Intent(one, uses=(use.key,))),
        )
        return self._lower(self._rng.choice(ways))

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

    def _mixed_language(self) -> Asked:
        family, word = self._family()
        use, hindi = self._use(family), self._words.hindi
        kind, cap = self._rng.choice(family.types).name, self._cap(family.price)
        purpose = self._rng.choice(use.hindi)
        cheap, good, new = (self._rng.choice(hindi[name]) for name in ("cheap", "good", "new"))
        one, fit = (family.key,), (use.key,)
        ways = (
            (f"{cheap} {kind} {word}", Intent(one, kind, cheap=True, hindi=True)),
            (f"{purpose} {word}", Intent(one, uses=fit, hindi=True)),
            (f"{purpose} {good} {word}", Intent(one, uses=fit, hindi=True)),
            (f"{good} {word} {cap:.0f} ke andar", Intent(one, cheap=True, hindi=True, price_cap=cap)),
            (f"{cheap} {word} {purpose}", Intent(one, uses=fit, cheap=True, hindi=True)),
            (f"{new} {kind} {word}", Intent(one, kind, new=True, hindi=True)),
        )
        return self._lower(self._rng.choice(ways))

    def _new_launch(self) -> Asked:
        family, word = self._family()
        kind = self._rng.choice(family.types).name
        one = (family.key,)
        ways = (
            (f"latest {word}", Intent(one, new=True)),
            (f"newly launched {kind} {word}", Intent(one, kind, new=True)),
            (f"{word} new model 2026", Intent(one, new=True)),
            (f"just launched {kind} {word} this season", Intent(one, kind, new=True)),
        )
        return self._lower(self._rng.choice(ways))

    def _priority(self) -> Asked:
        family, word = self._family()
        kind = self._rng.choice(family.types).name
        one = (family.key,)
        ways = (
            (f"{word} with same day installation", Intent(one, assured=True)),
            (f"store assured {kind} {word}", Intent(one, kind, assured=True)),
            (f"assured {word} delivered today", Intent(one, assured=True)),
            (f"{kind} {word} same day delivery", Intent(one, kind, assured=True)),
        )
        return self._lower(self._rng.choice(ways))

    def _family(self) -> tuple[Family, str]:
        family = self._rng.choice(self._words.families)
        return family, self._rng.choice(family.words)

    def _use(self, family: Family) -> UseCase:
        return self._words.uses[self._rng.choice(family.uses)]

    def _cap(self, price: float) -> float:
        step = 10 ** max(2, len(f"{price:.0f}") - 2)
        return float(max(1, round(price * self._rng.choice((0.6, 0.75, 0.9, 1.1)) / step)) * step)

    def _lower(self, asked: Asked) -> Asked:
        return asked[0].lower(), asked[1]
