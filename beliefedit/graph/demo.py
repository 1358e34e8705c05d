"""The built-in graph: invented people, real-world objects, pairs of dependent relations.

It is written in Wikidata5m's layout and read like any other graph in this layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, zip_longest
from pathlib import Path

import numpy as np

from beliefedit.errors import GraphError
from beliefedit.graph.wikidata5m import ENTITIES, RELATIONS, TRIPLES
from beliefedit.store import write_text

VERSION = 1
"""Increase it when the same size and seed give another graph."""
P_ONE = 0.12
"""Largest probability that a person has only the first relation of a pair, or the second."""
MIN_RELATIONS = 2

FIRST_OBJECT, FIRST_PERSON, FIRST_RELATION = 10_001, 100_001, 1_001


@dataclass(frozen=True)
class Pair:
    """Two relations, and the upstream objects that usually occur with each downstream object."""

    downstream: str
    upstream: str
    words: dict[str, str]

    @property
    def upstream_words(self) -> list[str]:
        """The upstream objects."""
        return ",".join(self.words.values()).split(",")


PAIRS = (
    Pair("speaks", "is a citizen of", {
        "Norwegian": "Norway", "Swedish": "Sweden", "Danish": "Denmark", "Finnish": "Finland",
        "Polish": "Poland", "German": "Germany,Austria,Liechtenstein",
        "French": "France,Monaco,Senegal", "Greek": "Greece,Cyprus", "Spanish": "Spain,Mexico,Peru",
        "Portuguese": "Portugal,Brazil,Angola", "Italian": "Italy,San Marino",
        "English": "Ireland,Australia,Jamaica", "Arabic": "Egypt,Morocco,Jordan",
        "Japanese": "Japan"}),
    Pair("has expertise in", "works as", {
        "physics": "physicist,astronomer", "chemistry": "chemist,perfumer",
        "biology": "botanist,zoologist", "medicine": "surgeon,nurse,dentist",
        "law": "judge,lawyer,notary", "finance": "banker,accountant",
        "education": "teacher,librarian", "farming": "shepherd,winemaker",
        "computing": "programmer", "construction": "architect,carpenter,bricklayer",
        "cooking": "chef,baker", "transport": "pilot,train driver",
        "theatre": "actor,stage designer", "publishing": "novelist,journalist"}),
    Pair("has an office in", "is employed by", {
        "Geneva": "CERN,Red Cross", "Paris": "UNESCO,Louvre,Sorbonne",
        "London": "BBC,British Museum,Royal Society", "Munich": "Siemens,Allianz",
        "Madrid": "Prado Museum,Iberia", "Milan": "La Scala,Pirelli",
        "Copenhagen": "Carlsberg,Maersk", "Stockholm": "Ericsson,Nobel Foundation",
        "Amsterdam": "Heineken,Rijksmuseum", "Kyoto": "Nintendo,Kyocera",
        "Seoul": "Samsung,Hyundai", "Seattle": "Boeing,Starbucks",
        "Vienna": "State Opera,Atomic Agency", "Sydney": "Qantas"}),
    Pair("trains at the", "competes in", {
        "pool": "swimming,diving,water polo", "rink": "ice hockey,figure skating,curling",
        "court": "tennis,badminton,basketball", "pitch": "football,rugby,hurling",
        "track": "sprinting,hurdles", "gym": "judo,wrestling", "river": "rowing,canoeing",
        "harbour": "sailing,windsurfing", "ski slope": "slalom,snowboarding",
        "stables": "dressage,show jumping", "velodrome": "track cycling",
        "climbing wall": "bouldering,speed climbing", "range": "archery,biathlon"}),
    Pair("performs in the", "plays the", {
        "orchestra": "violin,oboe,bassoon,harp", "string quartet": "viola,cello",
        "brass band": "trumpet,tuba,cornet", "wind quintet": "flute,clarinet",
        "jazz trio": "saxophone,double bass,piano", "folk group": "fiddle,accordion",
        "rock band": "electric guitar,drums", "country band": "banjo,pedal steel guitar",
        "pipe band": "bagpipes", "baroque ensemble": "harpsichord,lute,recorder",
        "church choir": "organ", "samba group": "tambourine,surdo"}))

FIRST_NAMES = """
Ada Adele Agnes Aino Alba Alina Alma Amara Anders Anouk Anton Arlo Astrid Aurel Beata Benno Bianca
Boris Bruna Carlo Celia Clara Cosmo Dagny Dario Delia Edda Edgar Elias Elin Elsa Emil Enzo Erik
Esme Fabio Felix Fiona Flora Frida Gala Gemma Gerda Gino Greta Hanna Hector Heidi Henrik Hilda Hugo
Ida Ilse Ines Irma Isak Ivo Jana Jonas Josef Juna Kaia Karin Klaus Lara Lars Leonie Levi Lina Linus
Lorena Lotte Lucas Luna Magda Malin Mara Marco Margit Mats Mila Mina Mirko Nadia Nelly Niko Nils
Nina Noemi Nora Odin Olga Olivia Orla Oscar Otto Paula Pavel Petra Pia Ramon Renata Rhea Rita Robin
Romy Rosa Rufus Sanna Selma Silas Simone Sofia Stella Sven Talia Tessa Theo Tilda Tomas Tova Ulla
Uma Ursula Valentin Vera Victor Viola Wanda Wilma Xenia Yara Yves Zelda Zora
""".split()
NAME_STARTS = """
Al Ar Bal Bar Bel Ber Bran Cal Cor Dal Dor El Fal Fen Gal Gar Hal Har Hol Kal Kel Kor Lan Lin Mal
Mar Mer Mor Nal Nor Or Pel Per Ral Ran Rol Sal San Sel Sten Tal Tor Val Var Vel Ver Vor Wal Win Zan
""".split()
NAME_ENDS = """
bach bard berg bridge brook by dale dan den dorf fell field ford gard gate grove hart heim hurst
kamp land ley lind low man mark mere mond more nes quist ridge rick sen stad stein stone strand ton
vall vik wald ward well wick win wood worth
""".split()


INVENTED = tuple(f"{start}{end.lower()}" for end in NAME_STARTS for start in NAME_STARTS
                 if start != end and end.lower() not in NAME_ENDS)
"""Names of upstream objects beyond those that `PAIRS` lists; no person has one of them."""


def write_demo_graph(folder: str | Path, *, n_subjects: int = 4000, seed: int = 0,
                     n_pairs: int = len(PAIRS), n_upstream_objects: int | None = None,
                     p_typical: float = 0.85, p_both: float = 0.34) -> None:
    """Write the three files of the demo graph; the same arguments give the same bytes.

    Args:
        n_subjects: number of people.
        seed: determines names and facts.
        n_pairs: the first pairs of `PAIRS` to use.
        n_upstream_objects: upstream objects of each pair, spread over as many downstream objects
            as possible; those beyond the listed ones have `INVENTED` names. None: those listed.
        p_typical: probability that the downstream object is the one that belongs to the upstream
            object; otherwise it is any other one.
        p_both: probability that a person has both relations of a pair. Near 1, all relations
            co-occur, and pairs cannot be recognized.

    Raises:
        GraphError: more people, pairs or upstream objects than there are, or a folder that cannot
            be written.
    """
    if not 1 <= n_pairs <= len(PAIRS):
        raise GraphError(f"the demo graph cannot have {n_pairs} pairs of relations",
                         where="graph.demo_pairs", hint=f"choose 1 to {len(PAIRS)}")
    generator = np.random.default_rng(seed)
    names = _people(n_subjects, generator)
    pairs = [_with_upstream_objects(index, n_upstream_objects) for index in range(n_pairs)]
    objects = [word for pair in pairs for word in (*pair.words, *pair.upstream_words)]
    relations = [label for pair in pairs for label in (pair.downstream, pair.upstream)]
    object_ids = {label: f"Q{FIRST_OBJECT + i}" for i, label in enumerate(objects)}
    relation_ids = {label: f"P{FIRST_RELATION + i}" for i, label in enumerate(relations)}
    facts = _facts(n_subjects, pairs, (p_typical, p_both), generator)
    people = [f"Q{FIRST_PERSON + i}" for i in range(n_subjects)]
    ids = (*object_ids.items(), *zip(names, people, strict=True))
    files = {ENTITIES: [f"{id_}\t{label}" for label, id_ in ids],
             RELATIONS: [f"{id_}\t{label}" for label, id_ in relation_ids.items()],
             TRIPLES: [f"{people[person]}\t{relation_ids[relation]}\t{object_ids[label]}"
                       for person, relation, label in facts]}
    try:
        for name, lines in files.items():
            write_text(Path(folder) / name, "\n".join(lines) + "\n")
    except OSError as error:
        raise GraphError(f"cannot write: {error.strerror or error}", where=str(folder),
                         hint="choose another folder") from error


def _people(n_subjects: int, generator: np.random.Generator) -> list[str]:
    """Distinct invented names."""
    shape = (len(FIRST_NAMES), len(NAME_STARTS), len(NAME_ENDS))
    n_names = int(np.prod(shape))
    if not 1 <= n_subjects <= n_names:
        raise GraphError(f"the demo graph cannot have {n_subjects} people",
                         where="graph.demo_subjects", hint=f"choose 1 to {n_names}")
    drawn = np.unravel_index(generator.choice(n_names, size=n_subjects, replace=False), shape)
    return [f"{FIRST_NAMES[first]} {NAME_STARTS[start]}{NAME_ENDS[end]}"
            for first, start, end in zip(*drawn, strict=True)]


def _with_upstream_objects(index: int, n: int | None) -> Pair:
    """A pair with n upstream objects, as evenly spread over downstream objects as possible."""
    pair = PAIRS[index]
    if n is None:
        return pair
    rounds = zip_longest(*(words.split(",") for words in pair.words.values()))
    listed = [(word, downstream) for words in rounds
              for downstream, word in zip(pair.words, words, strict=True) if word]
    names = [*listed, *zip(INVENTED[index::len(PAIRS)], cycle(pair.words), strict=False)]
    if not 2 <= n <= len(names):
        raise GraphError(f"a pair of the demo graph cannot have {n} upstream objects",
                         where="graph.demo_upstream_objects", hint=f"choose 2 to {len(names)}")
    words = {downstream: ",".join(word for word, of in names[:n] if of == downstream)
             for downstream in pair.words}
    return replace(pair, words={downstream: of for downstream, of in words.items() if of})


def _facts(n_subjects: int, pairs: Sequence[Pair], probabilities: tuple[float, float],
           generator: np.random.Generator) -> list[tuple[int, str, str]]:
    """(person, relation, object) by person and pair, the pair's downstream relation first.

    ``probabilities``: p_typical and p_both of `write_demo_graph`.
    """
    (p_typical, p_both), columns = probabilities, []
    for pair in pairs:
        upstream, downstream = pair.upstream_words, list(pair.words)
        n_upstream = [len(words.split(",")) for words in pair.words.values()]
        upstream_index = generator.integers(len(upstream), size=n_subjects)
        typical = np.repeat(np.arange(len(downstream)), n_upstream)[upstream_index]
        shift = generator.integers(1, len(downstream), size=n_subjects)
        is_typical = generator.random(n_subjects) < p_typical
        downstream_index = np.where(is_typical, typical, (typical + shift) % len(downstream))
        columns.append(([downstream[i] for i in downstream_index],
                        [upstream[i] for i in upstream_index]))
    has = _coverage(n_subjects, len(pairs), p_both, generator)
    return [(person, (pair.downstream, pair.upstream)[j], columns[i][j][person])
            for person in range(n_subjects) for i, pair in enumerate(pairs) for j in (0, 1)
            if has[person, i, j]]


def _coverage(n_subjects: int, n_pairs: int, p_both: float,
              generator: np.random.Generator) -> np.ndarray:
    """Which relations a person has: bool [n_subjects, n_pairs, 2 (downstream, upstream)]."""
    options = np.array([[True, True], [True, False], [False, True], [False, False]])
    p_one = min(P_ONE, (1 - p_both) / 4)  # so that pairs co-occur more than other relations
    shares = [p_both, p_one, p_one, max(0.0, 1 - p_both - 2 * p_one)]
    has = options[generator.choice(4, p=shares, size=(n_subjects, n_pairs))]
    while len(few := np.flatnonzero(has.sum(axis=(1, 2)) < MIN_RELATIONS)):
        has[few] = options[generator.choice(4, p=shares, size=(len(few), n_pairs))]
    has[0] = True  # the first person has everything: relations first appear in the order of PAIRS
    return has
