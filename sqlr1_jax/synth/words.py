"""The words of the synthetic databases: names by role, values by kind, and the names kept for `newnames`.

Names are single lower-case English words, legal as bare identifiers in SQLite, in one role each. Values never
are names. The reserved names occur in no split but newnames.
"""

from __future__ import annotations

from typing import NamedTuple

VALUES: dict[str, tuple[str, ...]] = {
    kind: tuple(words.split())
    for kind, words in {
        "color": "red blue green black white brown pink purple orange gray yellow teal",
        "place": "rome paris oslo lima cairo tokyo dublin boston madrid vienna delhi quito",
        "person": "anna ben clara david emma frank grace henry irene jack karen leo",
        "material": "wood iron silk wool steel glass cotton leather stone copper paper rubber",
        "food": "rice soup bread cheese pasta salad curry honey beans fish apple toast",
        "animal": "fox owl wolf bear eagle otter tiger shark crow horse rabbit snake",
        "time": "spring summer autumn winter monday friday sunday morning noon evening night dawn",
        "manner": "calm proud loud shy brave gentle bold lazy happy stern quiet eager",
        "grade": "poor fair good superb basic advanced minor major rare common prime junior",
        "genre": "jazz rock opera drama comedy horror poetry history science travel crime fantasy",
        "pastime": "chess tennis rowing skiing golf boxing cycling sailing running yoga judo archery",
        "state": "open closed pending active broken ready lost sold hidden empty frozen stable",
    }.items()
}


class Pool(NamedTuple):
    """Names by role."""

    tables: tuple[str, ...]
    keys: tuple[str, ...]  # of a table's own key
    links: tuple[str, ...]  # of a column that refers to another table's key
    numbers: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]  # (name, kind of its values)


def _pool(tables: str, keys: str, links: str, numbers: str, texts: dict[str, str]) -> Pool:
    named = tuple((word, kind) for kind, words in texts.items() for word in words.split())
    return Pool(tuple(tables.split()), tuple(keys.split()), tuple(links.split()), tuple(numbers.split()), named)


COMMON = _pool(
    tables="""dogs cats birds ships trains planes trucks cars bikes boats houses farms schools shops banks
        hotels museums theaters gardens parks bridges rivers lakes islands mountains villages clubs
        teams players coaches doctors nurses patients teachers students pupils classes courses lessons
        exams books novels songs albums movies games toys tools machines engines robots phones laptops
        cameras clocks lamps chairs desks beds carpets shirts shoes hats coats rings coins stamps
        letters parcels orders invoices tickets flights trips tours guests visitors members workers
        drivers pilots sailors farmers bakers cooks painters writers singers dancers actors lawyers
        judges soldiers knights kings queens wizards dragons planets stars comets rockets satellites
        labs samples plants trees flowers seeds fruits cakes pizzas drinks wines recipes kitchens stores
        markets factories offices projects meetings contracts loans payments buildings towers castles
        stadiums matches races medals events concerts festivals videos blogs websites servers sensors
        batteries""",
    keys="""code tag badge serial label ticket slot barcode token stub marker plate folio docket handle
        cipher stencil pin sku imprint registry""",
    links="""keeper owner maker holder seller buyer host sponsor leader manager mentor tutor supplier vendor
        dealer founder captain trainer guardian agent broker carrier editor publisher producer director
        inspector helper partner rival parent landlord tenant donor steward curator planner builder
        designer sender receiver ranger warden porter""",
    numbers="""age price weight height width depth length speed power score points salary income budget cost
        fee debt profit tax rent capacity volume area distance mileage altitude voltage wattage pressure
        calories sugar salt stock supply demand seats rooms floors doors wheels pages chapters lines
        copies prints likes views votes wins losses goals fouls assists laps yards miles hours minutes
        days weeks months years temperature humidity rainfall snowfall strength stamina agility health
        mana luck charm wisdom bonus discount deposit balance interest quota margin turnover headcount
        intake output yield acreage crew staff fans followers visits bookings returns repairs defects
        errors warnings delays crashes population density latency bandwidth memory storage lumens
        decibels carats proof""",
    texts={
        "color": "color shade tint paint coating dye hue varnish ink ribbon trim",
        "place": "city town home origin port region birthplace capital venue district county",
        "person": "nickname author poet artist composer hero villain witness neighbor cousin uncle friend",
        "material": "material fabric frame shell lining surface casing texture padding filler",
        "food": "meal dish snack flavor diet lunch dinner breakfast dessert topping",
        "animal": "mascot pet symbol emblem crest logo totem breed species",
        "time": "season weekday shift period deadline opening departure arrival",
        "manner": "mood temper attitude style behavior voice character reputation",
        "grade": "grade rating quality tier standard category condition priority",
        "genre": "genre theme topic subject plot mission program repertoire",
        "pastime": "sport hobby skill craft activity talent training contest",
        "state": "status phase stage access usage availability progress verdict",
    },
)

RESERVED = _pool(
    tables="""goats ponies canoes ferries vans tractors barns chapels temples harbors valleys deserts canyons
        guilds armies pirates hunters miners tailors barbers chemists violins drums guitars statues
        kettles mirrors candles jackets necklaces""",
    keys="crate rune glyph locker pouch seal",
    links="coach patron butler shepherd chief tracer escort courier scout envoy lender",
    numbers="""thickness torque horsepower brightness hunger courage stress traffic revenue tuition overtime
        vacancies branches layers petals drawers shelves pockets windows kilograms gallons inches""",
    texts={
        "color": "tone glaze enamel",
        "place": "hometown province shrine",
        "person": "nephew drummer",
        "material": "fiber alloy",
        "food": "pastry sauce",
        "animal": "creature omen",
        "time": "curfew semester",
        "manner": "demeanor posture",
        "grade": "caliber rarity",
        "genre": "motif lyric",
        "pastime": "workout leisure",
        "state": "outcome custody",
    },
)


def names(pool: Pool) -> tuple[str, ...]:
    """Every name of a pool, in a fixed order."""
    return (*pool.tables, *pool.keys, *pool.links, *pool.numbers, *(name for name, _ in pool.texts))


def values() -> tuple[str, ...]:
    """Every text value, without quotes."""
    return tuple(word for words in VALUES.values() for word in words)
