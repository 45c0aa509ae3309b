"""Words, names, numbers and emoji, and the rule that splits them between training and evaluation.

The rule is one hash (`held_out`): about an eighth of everything that can be spelled belongs to the
evaluation and is never trained on, whether it comes from a list below or is made up on the spot.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

TRAIN, EVAL = "train", "eval"


def held_out(text: str) -> bool:
    """Whether `text` is reserved for the evaluation."""
    return zlib.crc32(text.casefold().encode()) % 8 == 0


ENGLISH = """apple river stone cloud garden window yellow mountain silver candle bridge forest purple hammer
pencil rocket planet ocean thunder velvet marble lantern harvest meadow anchor basket copper dragon eagle feather
ginger harbor island jacket kettle ladder mirror needle orange pepper quartz ribbon saddle temple umbrella valley
walnut zebra almond beacon cactus desert ember falcon glacier hollow iris jungle kitten lemon magnet nectar olive
parrot quiver raven sunset tiger urchin violet willow yonder acorn breeze cobalt daisy echo fable granite hazel
indigo jasper kernel lilac maple night onyx pebble quill rain snow train paper water fire house music dance light
dark morning evening winter summer spring autumn coffee bread butter cheese happy brave quiet gentle clever swift
strong simple secret hidden ancient golden broken frozen silent hello world yes no okay ping pong test done ready
start stop open close left right up down north south east west red green blue black white pink brown gray cat dog
bird fish horse mouse rabbit bear wolf fox tree flower grass leaf root seed cake soup salad pasta pizza rice book
story letter number table chair door floor wall roof car bus boat plane road street city village market school the
a is are on in at my your our and or not this that good bad big small old new fast slow hot cold""".split()

# ordinary words that the fixed sentences above all use: without these, "repeat" would never see them alone
ORDINARY = """ortolan starter model tiny demo sorry remember call tools extract text count add subtract small numbers tell
capital capitals letters pirate matey helpful assistant friendly polite short answer question user name age job email
weather temperature degrees celsius minutes hours today tomorrow monday friday january december miles dollars euros
people person friend family mother father brother sister child teacher doctor king queen time year month week hour
minute second first last next thing place world life hand eye head heart mind work home money idea reason problem
power point part side end turn change line form name word sound voice color shape size price market company office
computer phone screen keyboard program server client request response token batch thread cache memory engine bird
wing nest song sky star moon sun earth sand sea lake hill valley field farm boat ship train plane station ticket
travel visit begin finish build break carry catch choose climb cook dance draw dream drink drive eat fall feel fight
find fly forget give grow hear help hide hold jump keep know laugh learn leave listen live look lose love make meet
need pay play pull push read ride ring run say see sell send show sing sit sleep smile speak spend stand swim take
talk teach think throw touch try understand use wait wake walk want wash watch wear win wish write always never
often maybe almost again enough early late soon away here there where when why how who what which very much many
few some any every other same different easy hard full empty clean dirty rich poor young tall long wide deep high
low near far warm cool dry wet sweet sour bitter fresh safe sick tired hungry thirsty busy free true false""".split()

NAMES = """Maria Anna Peter Paul Laura Lukas Emma Olivia Noah Liam Sophia Mia Lucas Ben Leo Julia Nina Tom Alice Bob
Carol David Eva Frank Grace Henry Ivan Jack Karen Linda Mark Nora Oscar Paula Quentin Rosa Sam Tina Ursula Victor
Wendy Xavier Yara Zoe Ahmed Fatima Omar Layla Hiroshi Yuki Kenji Aiko Wei Ling Chen Mei Priya Raj Anil Sita Olga
Boris Dmitri Svetlana Pablo Carlos Diego Lucia Marta Elena Jorge Pedro Ines Joao Beatriz Luigi Giulia Marco Chiara
Pierre Camille Louis Chloe Hans Greta Klaus Heidi Sven Astrid Lars Freya Niamh Sean Aoife Kofi Ama Kwame Zola Thabo
José Renée Zoë Björn Søren Łukasz André Chloé Jürgen Mónica Andrés Ségolène Ángel Çelik Åsa Øyvind Jelena Miloš
Alex Robin Sasha Kim Dana Jordan Taylor Casey Morgan Riley Ada Alan Ruth Max Felix Otto Clara Hugo Simon Martin""".split()

CITIES = """Paris London Berlin Madrid Rome Vienna Prague Oslo Dublin Athens Warsaw Helsinki Lisbon Geneva Milan Turin
Naples Venice Munich Hamburg Cologne Zurich Basel Brussels Antwerp Ghent Lyon Nice Bordeaux Seville Valencia Bilbao
Tokyo Osaka Kyoto Seoul Busan Beijing Shanghai Taipei Bangkok Hanoi Manila Jakarta Mumbai Delhi Chennai Karachi Cairo
Nairobi Lagos Accra Dakar Tunis Algiers Boston Chicago Denver Seattle Austin Dallas Miami Atlanta Toronto Montreal
Ottawa Vancouver Quito Bogotá Caracas Santiago Córdoba Málaga Reykjavík Kraków Gdańsk Malmö Århus Sydney Perth
Auckland Dubai Doha Riyadh Tehran Baghdad Istanbul Ankara Kyiv Minsk Riga Vilnius Tallinn Sofia Belgrade Zagreb""".split()
TWO_WORD_CITIES = [
    "New York",
    "San Francisco",
    "Los Angeles",
    "Buenos Aires",
    "Cape Town",
    "Hong Kong",
    "Tel Aviv",
    "Mexico City",
    "Kuala Lumpur",
    "São Paulo",
    "Rio de Janeiro",
    "Addis Ababa",
    "San José",
]

NOUNS = """weather temperature forecast price balance status schedule population humidity traffic distance score rating
address contact invoice order ticket meeting event reminder alarm note task message email report photo song playlist
movie recipe flight hotel room table taxi parcel package lamp light heater fan oven door window blind curtain speaker
radio television camera printer robot pump valve garage fridge kettle vacuum thermostat garden sprinkler stock share
currency unit file folder document database record user account customer product item cart coupon payment refund
calendar appointment booking reservation book article news video podcast map route train bus bike car battery sensor
water air pollen wind tide moon sun exchange interest loan tax salary budget inventory warehouse shipment vehicle
ticker token wallet license passport visa exam lesson course grade homework quiz game level player team match league
device server domain website page post comment tag label project issue branch commit build release backup log alert
timer stopwatch counter dice coin word definition synonym translation summary color shape size font image drawing""".split()

ATTRIBUTES = """level volume brightness temperature speed mode color height width angle limit power size timeout delay
intensity priority channel position rate duration depth pressure humidity contrast gain""".split()

JOBS = """doctor teacher baker pilot nurse farmer lawyer painter singer writer engineer chef driver dentist plumber
tailor barber butcher gardener librarian soldier sailor carpenter builder cook clerk judge actor dancer""".split()

COLORS = "red green blue yellow orange purple pink brown black white gray silver gold teal violet".split()

FOODS = """pizza pasta sushi soup salad cheese bread cake rice curry tacos noodles pancakes waffles burger apples
bananas grapes cherries mango honey chocolate yogurt omelette dumplings""".split()

ADJECTIVES = """big small old new happy sad funny strange blue loud quiet sharp soft heavy rare common fancy cheap
expensive famous ancient modern difficult easy popular dangerous beautiful important""".split()

ENUMS = [
    ["celsius", "fahrenheit"],
    ["metric", "imperial"],
    ["low", "medium", "high"],
    ["small", "medium", "large"],
    ["on", "off"],
    ["open", "closed"],
    ["red", "green", "blue"],
    ["warm", "cold"],
    ["heat", "cool", "auto"],
    ["daily", "weekly", "monthly"],
    ["asc", "desc"],
    ["economy", "business", "first"],
    ["json", "csv", "xml"],
    ["slow", "normal", "fast"],
    ["public", "private"],
    ["left", "right"],
    ["morning", "afternoon", "evening"],
    ["eco", "boost", "sleep"],
    ["short", "long"],
    ["draft", "final"],
    ["north", "south", "east", "west"],
    ["jazz", "rock", "pop", "folk"],
    ["urgent", "normal"],
    ["light", "dark"],
    ["cash", "card"],
]

CURRENCIES = ["USD", "EUR", "GBP", "JPY", "CHF", "CAD", "AUD", "SEK", "NOK", "DKK", "PLN", "BRL", "INR", "CNY"]
UNITS = [
    "miles",
    "kilometers",
    "meters",
    "feet",
    "inches",
    "pounds",
    "kilograms",
    "grams",
    "liters",
    "gallons",
    "hours",
    "minutes",
    "euros",
    "dollars",
    "yen",
    "knots",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "today", "tomorrow", "tonight"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]

ONSETS = """b c d f g h j k l m n p q r s t v w x y z b c d f g h k l m n p r s t v w bl br ch cl cr dr fl fr gl gr kl
pl pr qu sh sk sl sn sp st str th tr tw wh""".split()
VOWELS = "a e i o u y a e i o u a e i o u ai au ea ee ie oa oo ou".split()
CODAS = [
    *[""] * 14,
    "b",
    "d",
    "g",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "x",
    "z",
    "l",
    "n",
    "r",
    "s",
    "t",
    "ck",
    "ld",
    "lt",
    "mp",
    "nd",
    "ng",
    "nk",
    "nt",
    "rd",
    "rk",
    "rn",
    "rt",
    "sh",
    "ss",
    "st",
    "th",
]
ACCENTS = "áàâäãåéèêëíìîïóòôöõøúùûüýñçßšžčćđłńśźżęąőűğışřťůþðæœāēīōū"
GREEK = "αβγδεζηθικλμνξοπρστυφχψω"
CYRILLIC = "абвгдежзийклмнопрстуфхцчшщыэюя"
OTHER_LETTERS = "日本語中国文字水火山川一二三人大小あいうえおかきくけこさしすせそアイウエオカキクケコ한국어사람나라אבגדהוזחטابتثجحخدذ"

EMOJI_RANGES = [
    (0x1F600, 0x1F64F),
    (0x1F300, 0x1F320),
    (0x1F32D, 0x1F37F),
    (0x1F380, 0x1F3C4),
    (0x1F400, 0x1F4FC),
    (0x1F500, 0x1F53D),
    (0x1F680, 0x1F6C5),
    (0x1F90D, 0x1F93A),
    (0x1F940, 0x1F9FF),
    (0x2600, 0x2604),
    (0x2648, 0x2653),
    (0x26BD, 0x26BE),
]
PEOPLE = ["👍", "👋", "👏", "🙏", "💪", "👨", "👩", "🧑", "👶", "🤝", "✋", "👌"]
SKIN = ["🏻", "🏼", "🏽", "🏾", "🏿"]
JOINED = ["💻", "🚀", "🔬", "🎨", "🍳", "🌾", "🏫", "🚒"]


class Lexicon:
    """Draws words of one split. Every method returns something whose hash belongs to that split."""

    def __init__(self, rng: random.Random, split: str):
        self.rng = rng
        self.split = split

    def draw(self, make: Callable[[], str]) -> str:
        """Calls `make` until its result belongs to this split."""
        while True:
            text = make()
            if held_out(text) == (self.split == EVAL):
                return text

    def of(self, options: Sequence[str]) -> str:
        """One of a list, from this split's part of it."""
        return self.draw(lambda: self.rng.choice(options))

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def weighted(self, options: dict[T, float]) -> T:
        return self.rng.choices(list(options), list(options.values()))[0]

    # words

    def _syllables(self, low: int, high: int) -> str:
        r = self.rng
        return "".join(r.choice(ONSETS) + r.choice(VOWELS) + r.choice(CODAS) for _ in range(r.randint(low, high)))

    def made_up(self) -> str:
        """A lower-case word nobody has used before."""
        r = self.rng
        kind = r.random()
        if kind < 0.85:
            return self.draw(
                lambda: (
                    (r.choice(VOWELS) if r.random() < 0.2 else "") + self._syllables(1, 2 if r.random() < 0.75 else 3)
                )
            )
        return self.draw(lambda: "".join(r.choices("abcdefghijklmnopqrstuvwxyz", k=r.randint(2, 6))))

    def plain(self) -> str:
        """A lower-case English or made-up word."""
        kind = self.rng.random()
        return self.of(ENGLISH) if kind < 0.25 else self.of(ORDINARY) if kind < 0.45 else self.made_up()

    def accented(self) -> str:
        def make() -> str:
            letters = list(self._syllables(1, 2))
            for _ in range(self.rng.randint(1, 2)):
                letters[self.rng.randrange(len(letters))] = self.rng.choice(ACCENTS)
            return "".join(letters)

        return self.draw(make)

    def foreign(self) -> str:
        """A word in another script."""
        r = self.rng
        script = r.choice([GREEK, CYRILLIC, CYRILLIC, OTHER_LETTERS])
        return self.draw(lambda: "".join(r.choices(script, k=r.randint(2, 7 if script != OTHER_LETTERS else 4))))

    def code(self) -> str:
        """Mixed letters, digits and signs: `AB-12`, `foo_bar`, `x9@mail.com`."""
        r = self.rng
        w = self.made_up
        return r.choice(
            [
                lambda: f"{w()}_{w()}",
                lambda: f"{w()}-{w()}",
                lambda: f"{w().upper()[:3]}-{r.randint(1, 999)}",
                lambda: f"{w()}{r.randint(0, 99)}",
                lambda: self.email(),
                lambda: f"{w().capitalize()}{w().capitalize()}",
                lambda: f"{r.randint(1, 99)}.{r.randint(0, 99)}",
                lambda: w().upper(),
                lambda: f"#{w()}",
                lambda: f"{r.choice('ABCDEFGHKLMNPRSTXZ')}{r.randint(1, 99)}",
                lambda: f"{w()}.{w()[:3]}",
            ]
        )()

    def word(self) -> str:
        """Any single word, in any spelling people use."""
        kind = self.rng.random()
        if kind < 0.55:
            word = self.plain()
        elif kind < 0.67:
            word = self.accented()
        elif kind < 0.72:
            word = self.foreign()
        elif kind < 0.8:
            return self.code()
        else:
            return self.plain().capitalize()
        return word.upper() if self.chance(0.04) else word

    # names and numbers

    def name(self) -> str:
        if self.chance(0.45):
            return self.of(NAMES)
        word = self.accented() if self.chance(0.12) else self.made_up()
        return word.capitalize()

    def full_name(self) -> str:
        return f"{self.name()} {self.name()}" if self.chance(0.15) else self.name()

    def city(self) -> str:
        if self.chance(0.06):
            return self.of(TWO_WORD_CITIES)
        return self.of(CITIES) if self.chance(0.5) else self.made_up().capitalize()

    def noun(self) -> str:
        """A thing, as in tool names: half of them made up, so that meaning cannot be memorised."""
        return self.of(NOUNS) if self.chance(0.7) else self.made_up()

    def long_number(self) -> str:
        """Three to nine digits."""
        r = self.rng
        return self.draw(lambda: str(r.randint(1, 9)) + "".join(r.choices("0123456789", k=r.randint(2, 8))))

    def number(self) -> str:
        return str(self.rng.randint(0, 99)) if self.chance(0.3) else self.long_number()

    def email(self) -> str:
        return f"{self.made_up()}@{self.made_up()}.{self.rng.choice(['com', 'org', 'net', 'eu'])}"

    def date(self) -> str:
        r = self.rng
        return r.choice(
            [
                lambda: r.choice(DAYS),
                lambda: f"{r.randint(2020, 2035)}-{r.randint(1, 12):02}-{r.randint(1, 28):02}",
                lambda: f"{r.choice(MONTHS)} {r.randint(1, 28)}",
            ]
        )()

    def time(self) -> str:
        r = self.rng
        return r.choice(
            [
                lambda: f"{r.randint(0, 23):02}:{r.choice(['00', '15', '30', '45'])}",
                lambda: f"{r.randint(1, 12)} {r.choice(['am', 'pm'])}",
            ]
        )()

    def emoji(self) -> str:
        r = self.rng

        def make() -> str:
            kind = r.random()
            if kind < 0.72:
                return chr(r.randint(*r.choice(EMOJI_RANGES)))
            if kind < 0.8:
                return r.choice(PEOPLE[:10]) + r.choice(SKIN)
            if kind < 0.88:
                return "".join(chr(0x1F1E6 + r.randrange(26)) for _ in range(2))
            if kind < 0.94:
                return r.choice(["👨", "👩", "🧑"]) + r.choice(["", *SKIN]) + "\u200d" + r.choice(JOINED)
            return r.choice(["❤", "☀", "✈", "☎", "✂", "⚠"]) + "\ufe0f"

        return self.draw(make)

    def phrase(self, low: int = 1, high: int = 4) -> str:
        """A few plain words, as in a search query or a message."""
        return " ".join(self.plain() for _ in range(self.rng.randint(low, high)))
