"""Answers in French, German, Italian, Portuguese, Spanish and others: known words as English.

Only a whole run of words that the tables know is put in English; any other stays as it is.
"""

from __future__ import annotations

import re
from functools import lru_cache

_SAYINGS = {
    "yes": "oui sí sì sim да はい 예 evet tak",
    "no": "nein não нет いいえ 아니요",
    "true": "vrai wahr verdadero vero verdadeiro верно richtig cierto vraie wahre verdadera vera",
    "false": "faux falsch falso неверно fausse falsa",
    "even": "pair paire gerade pari четное чётное 偶数",
    "odd": "impair impaire ungerade impar ímpar dispari нечетное нечётное 奇数",
    "prime": "premier prim primo",
    "left": "links gauche izquierda sinistra esquerda", "right": "droite rechts derecha destra",
    "north": "nord norden norte", "south": "süden sud sur", "east": "osten ost este leste",
    "west": "westen ouest oeste ovest",
    "infinite": "infini unendlich infinito infinie unendlich",
    "increasing": "croissante croissant steigend creciente crescente",
    "decreasing": "décroissante décroissant fallend decreciente decrescente",
    "infinity": "l'infini unendlichkeit",
    "triangle": "dreieck triángulo triangolo triângulo", "circle": "cercle kreis círculo cerchio",
    "square": "carré quadrat cuadrado quadrato quadrado", "ellipse": "elipse ellisse",
    "rectangle": "rechteck rectángulo rettangolo retângulo",
    "parabola": "parabole parabel parábola",
    "hyperbola": "hyperbole hyperbel hipérbola iperbole hipérbole",
    "red": "rouge rot rojo rosso vermelho", "blue": "bleu blau azul blu",
    "green": "vert grün verde", "white": "blanc weiß blanco bianco branco",
    "black": "noir schwarz negro nero preto", "yellow": "jaune gelb amarillo giallo amarelo",
    "greater": "größer mayor maggiore maior", "smaller": "kleiner menor minore",
    "equal": "égal gleich igual uguale", "positive": "positif positiv positivo",
    "negative": "négatif negativ negativo", "rational": "rationnel racional razionale",
    "irrational": "irrationnel irracional irrazionale", "convergent": "convergente",
    "divergent": "divergente", "correct": "korrekt correcto corretto correto",
    "incorrect": "inkorrekt incorrecto incorreto"}
_STATED = {
    "area": "l'aire|la superficie|el área|der flächeninhalt|die fläche|l'area|a área",
    "perimeter": "le périmètre|el perímetro|der umfang|il perimetro|o perímetro",
    "volume": "le volume|el volumen|das volumen|il volume|o volume",
    "probability": "la probabilité|la probabilidad|die wahrscheinlichkeit|la probabilità|"
                   "a probabilidade", "value": "la valeur|el valor|der wert|il valore|o valor",
    "sum": "la somme|la suma|die summe|la somma|a soma",
    "number": "le nombre|el número|die zahl|die anzahl|il numero|o número"}
_COPULAS = ("est", "es", "ist", "è", "é", "beträgt", "vaut")
_PHRASES = {
    "no solution": "keine lösung|keine lösungen|aucune solution|pas de solution|sin solución|"
                   "no hay solución|no hay soluciones|no tiene solución|no tiene soluciones|"
                   "ninguna solución|nessuna soluzione|non ci sono soluzioni|nenhuma solução|"
                   "sem solução|não há solução|não existe solução|no existe solución|"
                   "il n'y a pas de solution|il n'existe pas de solution|"
                   "es gibt keine lösung|нет решений|解なし",
    "does not exist": "n'existe pas|existiert nicht|no existe|non esiste|não existe",
    "infinitely many": "une infinité|unendlich viele|infinitas|infinite soluzioni|infinitos",
    "the answer is": "la respuesta es|la respuesta final es|die antwort ist|die antwort lautet|"
                     "la réponse est|la réponse finale est|la risposta è|a resposta é|"
                     "das ergebnis ist|le résultat est|el resultado es|il risultato è|"
                     "o resultado é|die lösung ist|la solution est|la solución es|"
                     "la soluzione è|a solução é|respuesta|antwort|réponse|risposta|resposta",
    " or ": "o|ou|oder|oppure|или|または", " and ": "y|e|et|und|и|sowie",
    "all real numbers": "alle reellen zahlen|tous les réels|tous les nombres réels|"
                        "todos los números reales|todos los reales|tutti i numeri reali|"
                        "todos os números reais"}
_UNITS = {
    "hours": "heures heure stunden stunde horas hora ore ora часов часа",
    "minutes": "minuten minutos minuto minuti minut", "seconds": "secondes segundos segundo "
    "sekunden secondi secondo", "days": "jours jour tage tag días día giorni giorno dias dia дней",
    "weeks": "semaines semaine wochen woche semanas semana settimane settimana",
    "months": "monate monat meses mes mesi mese mês", "years": "ans jahre jahr años año anni anno "
    "anos ano лет", "meters": "mètres mètre metros metro metri метров",
    "kilometers": "kilomètres kilomètre kilómetros kilómetro chilometri quilômetros quilómetros "
    "kilometer", "centimeters": "centimètres centimètre centímetros centímetro centimetri "
    "zentimeter", "millimeters": "millimètres milímetros millimetri millimeter",
    "grams": "grammes gramme gramm gramos gramo grammi gramas",
    "kilograms": "kilogrammes kilogramm kilogramos chilogrammi quilogramas kilos quilos",
    "liters": "litres litros litro litri", "degrees": "degrés degré grados grado gradi graus",
    "euros": "euro", "dollars": "dólares dollari dólar", "percent": "prozent pourcent",
    "million": "millionen millones milioni milhões millón milione milhão",
    "billion": "milliarden milliarde milliards milliard miliardi",
    "thousand": "tausend", "hundred": "hundert",
    "square meters": "quadratmeter mètres_carrés metros_cuadrados metri_quadrati",
    "square centimeters": "quadratzentimeter centimètres_carrés centímetros_cuadrados",
    "cubic meters": "kubikmeter mètres_cubes metros_cúbicos metri_cubi",
    "cubic centimeters": "kubikzentimeter centimètres_cubes centímetros_cúbicos"}
_MONTHS = (
    "janvier januar januari enero gennaio janeiro", "février februar febrero febbraio fevereiro",
    "mars märz marzo março", "avril april abril aprile", "mai mayo maggio maio",
    "juin juni junio giugno junho", "juillet juli julio luglio julho",
    "août august agosto", "septembre september septiembre settembre setembro",
    "octobre oktober octubre ottobre outubro", "novembre november noviembre novembro",
    "décembre dezember diciembre dicembre dezembro")
_DAYS = (
    "lundi montag lunes lunedì segunda-feira 星期一 周一 礼拜一",
    "mardi dienstag martes martedì terça-feira 星期二 周二 礼拜二",
    "mercredi mittwoch miércoles mercoledì quarta-feira 星期三 周三 礼拜三",
    "jeudi donnerstag jueves giovedì quinta-feira 星期四 周四 礼拜四",
    "vendredi freitag viernes venerdì sexta-feira 星期五 周五 礼拜五",
    "samedi samstag sonnabend sábado sabato 星期六 周六 礼拜六",
    "dimanche sonntag domingo domenica 星期日 星期天 周日 礼拜天")


def _words(text: str) -> list[str]:
    return text.split()


_MONTH_NAMES = _words(
    "January February March April May June July August September October November "
    "December")
_DAY_NAMES = _words(
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday")


def _table(named: dict[str, str], separator: str | None) -> dict[str, str]:
    return {word.replace("_", " "): english for english, said in named.items()
            for word in said.split(separator)}


_CALENDAR = {word: name for names, rows in ((_MONTH_NAMES, _MONTHS), (_DAY_NAMES, _DAYS))
             for name, row in zip(names, rows, strict=True) for word in row.split()}
_AMBIGUOUS = frozenset(["april", "august", "september", "november", "mai", "mars"])
"""English too, or words of their own where no day stands beside them."""
_ENGLISH = _table(_SAYINGS, None) | _table(_PHRASES, "|") | _table(_UNITS, None) | {
    word: name for word, name in _CALENDAR.items() if word not in _AMBIGUOUS} | {
    f"{noun} {copula}": f"the {name} is" for noun, name in _table(_STATED, "|").items()
    for copula in _COPULAS}
_DOUBTFUL = {word: _ENGLISH.pop(word) for word in (
    "pair", "premier", "links", "rot", "ore", "mayor", "lunes", "tag")} | {
    "elf": "11", "seize": "16"}
"""English words too: what is meant by them is not guessed."""
_DOUBT = re.compile(rf"(?<![^\W\d_\\])(?:{'|'.join(_DOUBTFUL)})(?![^\W\d_])", re.I)
_LETTERS = r"[^\W\d_]+"
_NAME, _DATED = re.compile(rf"{_LETTERS}(?:-feira)?"), re.compile(r"\d\.? (?:de )?[A-Z]")
_RUN = re.compile(rf"(?<![^\W\d_])(?<!\\){_LETTERS}(?:[ '’-]{_LETTERS})*")


@lru_cache(maxsize=20_000)
def in_english(text: str) -> str:
    """`text` with each run of words that the tables know in English."""
    return _RUN.sub(_run, text)


def if_foreign(text: str) -> str:
    """`text` with English words that are foreign ones too read as those; "" if it has none."""
    read, count = _DOUBT.subn(lambda m: _DOUBTFUL[m[0].casefold()], text)
    return read if count else ""


def _run(match: re.Match[str]) -> str:
    run = match[0].replace("’", "'").casefold()
    english = _ENGLISH.get(run)
    if english is None:
        return match[0]
    if len(run) == 1:  # "o" and "y" may be variables
        around = match.string[match.start() - 2:match.start()], match.string[match.end():][:2]
        return english.strip() if around == ("{ ", " }") else match[0]
    return english


@lru_cache(maxsize=5_000)
def calendar(text: str) -> str:
    """Names of months and days in English, without what joins them to the day of the month."""
    out = _NAME.sub(lambda m: _CALENDAR.get(m[0].casefold(), m[0]), text)
    if out.casefold() == text.casefold() and not _DATED.search(out):
        return text
    out = re.sub(r"(?<=\d)(?:\.|º|er)(?=\s*[A-Z])", "", out)
    out = re.sub(r"\b(?:de|del|di|d')\s+(?=[A-Z\d])", "", out)
    return re.sub(r"^(?:le|el|il|am|den|der|o)\s+", "", out, flags=re.I)


_GERMAN = _words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn "
    "vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn")
_FRENCH = _words(
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize "
    "quatorze quinze seize dix-sept dix-huit dix-neuf")
_SPANISH = _words(
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece "
    "catorce quince dieciséis diecisiete dieciocho diecinueve veinte veintiuno "
    "veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete "
    "veintiocho veintinueve")
_ITALIAN = _words(
    "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici "
    "tredici quattordici quindici sedici diciassette diciotto diciannove")
_PORTUGUESE = _words(
    "zero um dois três quatro cinco seis sete oito nove dez onze doze treze catorze "
    "quinze dezesseis dezessete dezoito dezenove")
_TENS = {
    "de": _words("zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"),
    "fr": _words("vingt trente quarante cinquante soixante"),
    "es": _words("veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa"),
    "it": _words("venti trenta quaranta cinquanta sessanta settanta ottanta novanta"),
    "pt": _words("vinte trinta quarenta cinquenta sessenta setenta oitenta noventa")}


def _numbers() -> dict[str, int]:
    """Every number below a hundred that the five languages spell, and a few above."""
    named: dict[str, int] = {}
    for words in (_GERMAN, _FRENCH, _SPANISH, _ITALIAN, _PORTUGUESE):
        named |= {word: value for value, word in enumerate(words)}
    for language, tens in _TENS.items():
        named |= {ten: 20 + 10 * at for at, ten in enumerate(tens)}
        for at, ten in enumerate(tens):
            for unit in range(1, 10):
                named[_spelt(language, ten, unit)] = 20 + 10 * at + unit
    for unit in range(10, 20):
        named[f"soixante-{_FRENCH[unit]}"] = 60 + unit
        named[f"quatre-vingt-{_FRENCH[unit]}"] = 80 + unit
    for unit in range(1, 10):
        named[f"quatre-vingt-{_FRENCH[unit]}"] = 80 + unit
    named |= {"soixante et onze": 71, "quatre-vingts": 80, "cent": 100, "cien": 100, "cento": 100,
              "cem": 100, "einhundert": 100, "mille": 1000, "eintausend": 1000,
              **{f"{unit}cientos": 100 * size for unit, size in (
                  ("dos", 2), ("tres", 3), ("cuatro", 4), ("seis", 6), ("ocho", 8))},
              **{f"{_GERMAN[size]}hundert": 100 * size for size in range(2, 10)},
              **{f"{_ITALIAN[size]}cento": 100 * size for size in range(2, 10)},
              **{f"{_FRENCH[size]} cents": 100 * size for size in range(2, 10)},
              **{f"{_GERMAN[size]}tausend": 1000 * size for size in range(2, 10)},
              "quinientos": 500, "setecientos": 700, "novecientos": 900, "dos mil": 2000,
              "duzentos": 200, "trezentos": 300, "quinhentos": 500, "duemila": 2000,
              "deux mille": 2000,
              "dezasseis": 16, "dezassete": 17, "quatorze": 14}
    for name in ("once", "zero", "cent", "six", "due", "sei", "sept", "null", "un", "um", "elf",
                 "seize"):
        named.pop(name)  # English words, or words of another meaning
    return named


def _spelt(language: str, ten: str, unit: int) -> str:
    if language == "de":
        return f"{'ein' if unit == 1 else _GERMAN[unit]}und{ten}"
    if language == "fr":
        return f"{ten} et un" if unit == 1 else f"{ten}-{_FRENCH[unit]}"
    if language == "it":
        name = "tré" if unit == 3 else _ITALIAN[unit]
        return (ten[:-1] if unit in (1, 8) else ten) + name
    return f"{ten} {'y' if language == 'es' else 'e'} " + (
        _SPANISH if language == "es" else _PORTUGUESE)[unit]


_NUMBERS = _numbers()


def number(text: str) -> int | None:
    """The whole number that `text` spells in one of the five languages; None of others."""
    said = " ".join(text.casefold().split())
    return _NUMBERS.get(said, _NUMBERS.get(said.replace("-et-", " et ")))
