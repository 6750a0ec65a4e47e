"""Embedded items of the tasks that ask for one of several answers, in the form {query, choices, gold}."""

from typing import Any

_Item = tuple[str, tuple[str, ...], int]

_HELLASWAG: tuple[_Item, ...] = (
    ("Baking bread: A woman kneads dough on a floured table. She",
     ("shapes it into a loaf and lays it in a tin.", "pours it into her bicycle tyre.",
      "reads the dough aloud to the class.", "hangs the table from the ceiling."), 0),
    ("Mowing the lawn: A man pulls the cord of a mower twice, and the engine starts. He",
     ("combs the engine with a fork.", "pushes the mower in rows across the grass.",
      "serves the mower with lemon.", "folds the grass into envelopes."), 1),
    ("Washing hands: A boy turns on the tap and takes the soap. He",
     ("throws the tap across the field.", "sings the soap to sleep in a drawer.",
      "rubs his hands until they are covered in foam.", "paints the water with a roller."), 2),
    ("Playing chess: Two players sit down and set up the pieces. White",
     ("waters the board with a hose.", "sells the clock to the referee.",
      "climbs the rook with a rope.", "moves a pawn and presses the clock."), 3),
    ("Fixing a puncture: A girl takes the tube out of the tyre and holds it under water. She",
     ("looks for the bubbles and marks the hole.", "boils the tube and eats it.",
      "ties the water into a knot.", "writes a letter to the wheel."), 0),
    ("Painting a fence: A man opens a tin of white paint and stirs it. He",
     ("drinks the brush through a straw.", "brushes the paint along the first board.",
      "shaves the tin with a razor.", "drives the fence to the station."), 1),
    ("Making tea: A woman fills the kettle and puts it on the stove. When it boils, she",
     ("plants the kettle in the garden.", "irons the stove until it is flat.",
      "pours the water over the leaves in the pot.", "throws a net over the steam."), 2),
    ("Skating: A girl laces up her skates at the edge of the pond. She",
     ("bakes the pond in the oven.", "pulls the ice over her head.",
      "peels the skates with a knife.", "glides out slowly with her arms spread."), 3),
)  # fmt: skip
_ARC_EASY: tuple[_Item, ...] = (
    ("Question: Which of these gives off light of its own?", ("a candle flame", "a mirror", "the Moon", "a window"), 0),
    ("Question: What do plants take in through their roots?", ("light", "water", "sound", "wind"), 1),
    ("Question: What is water when it is frozen?", ("steam", "fog", "ice", "rain"), 2),
    ("Question: Which animal lays eggs?", ("a dog", "a horse", "a cow", "a hen"), 3),
    ("Question: Which tool measures temperature?", ("a thermometer", "a ruler", "a balance", "a clock"), 0),
    ("Question: What pulls a falling stone to the ground?", ("light", "gravity", "heat", "sound"), 1),
    ("Question: Which of these is attracted by a magnet?",
     ("a wooden spoon", "a glass bead", "an iron nail", "a paper cup"), 2),
    ("Question: Which part of the body pumps blood?", ("the lungs", "the stomach", "the brain", "the heart"), 3),
)  # fmt: skip
_ARC_CHALLENGE: tuple[_Item, ...] = (
    ("Question: A metal spoon in hot soup soon feels hot at its handle. How did the heat get there?",
     ("by conduction", "by radiation from the Sun", "by evaporation", "by magnetism"), 0),
    ("Question: A student wants to know whether light makes beans grow faster. What should differ between her pots?",
     ("the kind of bean", "the amount of light", "the amount of water", "the size of the pot"), 1),
    ("Question: Why does a puddle shrink on a dry, windy day?",
     ("The water freezes.", "The ground pushes it up.", "The water evaporates.", "The wind compresses it."), 2),
    ("Question: A cart rolls down a ramp without being pushed. Which energy turns into motion?",
     ("chemical energy", "sound", "electrical energy", "potential energy"), 3),
    ("Question: Rabbits in snowy places that are white are seen by fewer foxes. What is this an example of?",
     ("an adaptation", "erosion", "condensation", "migration"), 0),
    ("Question: What causes day and night on Earth?",
     ("the Moon's shadow", "the Earth's rotation", "the seasons", "the tides"), 1),
    ("Question: Sugar is stirred into tea until none can be seen. What is the tea now?",
     ("an element", "a pure metal", "a solution", "a gas"), 2),
    ("Question: Which change makes a new substance?",
     ("melting wax", "cutting paper", "bending wire", "burning wood"), 3),
)  # fmt: skip
_OPENBOOKQA: tuple[_Item, ...] = (
    ("A person who wants to see in a dark cellar should carry", ("a torch", "a pillow", "a spoon", "a hat"), 0),
    ("Bees visit flowers in order to", ("sleep", "gather nectar", "cool down", "count them"), 1),
    ("Wool keeps people warm because it", ("is heavy", "is bright", "traps air", "makes heat"), 2),
    ("A shadow is longest when the sun is", ("overhead", "behind a cloud", "red hot", "near the horizon"), 3),
    ("To keep iron from rusting, one may", ("paint it", "wet it", "salt it", "leave it outdoors"), 0),
    ("A seed needs most of all, to sprout,", ("music", "water", "a pot of clay", "moonlight"), 1),
    ("Ice floats on a lake because it is", ("colder than air", "older", "less dense than water", "white"), 2),
    ("An echo is sound that has been", ("eaten", "frozen", "painted", "reflected"), 3),
)  # fmt: skip
_WINOGRANDE: tuple[_Item, ...] = (
    ("The cup did not fit in the box because the _ was too wide.", ("cup", "box"), 0),
    ("The cup did not fit in the box because the _ was too narrow.", ("cup", "box"), 1),
    ("Ada thanked Ruth because _ had been helped.", ("Ada", "Ruth"), 0),
    ("Ada thanked Ruth because _ had helped.", ("Ada", "Ruth"), 1),
    ("The kettle stood on the shelf until the _ broke under the weight.", ("kettle", "shelf"), 1),
    ("The dog chased the cat until the _ climbed a tree to be safe.", ("dog", "cat"), 1),
    ("Otto lent Paul an umbrella, since _ had brought two.", ("Otto", "Paul"), 0),
    ("The rope held the boat although the _ was thin.", ("rope", "boat"), 0),
)  # fmt: skip
_BOOLQ: tuple[_Item, ...] = tuple(
    (f"Passage: {passage}\nQuestion: {question}?", ("no", "yes"), gold)
    for passage, question, gold in (
        ("The mill on the river stopped grinding in 1921. Since 1950 it has been a museum.",
         "is the mill a museum today", 1),
        ("The mill on the river stopped grinding in 1921. Since 1950 it has been a museum.",
         "did the mill grind in 1930", 0),
        ("A tram runs every ten minutes by day. At night there is a bus instead.",
         "does the tram run at night", 0),
        ("A tram runs every ten minutes by day. At night there is a bus instead.",
         "is there a bus at night", 1),
        ("The lake freezes in most winters, and people skate on it. Bathing is not allowed.",
         "do people skate on the lake", 1),
        ("The lake freezes in most winters, and people skate on it. Bathing is not allowed.",
         "may people bathe in the lake", 0),
        ("The tower has 212 steps and no lift. From the top one sees the sea.",
         "is there a lift in the tower", 0),
        ("The tower has 212 steps and no lift. From the top one sees the sea.",
         "can one see the sea from the tower", 1),
    )
)  # fmt: skip
_COPA: tuple[_Item, ...] = (
    ("The lamp went out, because", ("the fuse had blown.", "the room was painted green."), 0),
    ("The road was covered in ice, therefore", ("the bakery opened early.", "the drivers went slowly."), 1),
    ("The child laughed, because", ("the clown fell over.", "the clock struck two."), 0),
    ("The roof leaked, therefore", ("the cat learned a trick.", "the carpet got wet."), 1),
    ("The bread was burnt, because", ("it had stayed in the oven too long.", "it had been bought on a Monday."), 0),
    ("The battery was empty, therefore", ("the sky cleared.", "the radio fell silent."), 1),
    ("The train was late, because", ("a tree had fallen on the line.", "the tickets were blue."), 0),
    ("The man lost his key, therefore", ("the river froze.", "he could not open his door."), 1),
)  # fmt: skip
_SIQA: tuple[_Item, ...] = tuple(
    (f"Context: {context}\nQuestion: {question}", choices, gold)
    for context, question, choices, gold in (
        ("Lena broke Max's cup by accident.", "What will Lena want to do next?",
         ("say that she is sorry", "break another cup", "go to sleep at once"), 0),
        ("Max carried the shopping upstairs for his neighbour.", "How would the neighbour feel as a result?",
         ("robbed", "grateful", "hungry for stairs"), 1),
        ("Ida practised the piece every day for a month.", "Why did Ida do this?",
         ("to wear out the floor", "to forget it", "to play it well at the concert"), 2),
        ("Tom shared his lunch with a boy who had none.", "How would you describe Tom?",
         ("kind", "greedy", "careless"), 0),
        ("Nora missed the last bus home.", "What will Nora want to do next?",
         ("buy a bus stop", "call a taxi", "wait for last week"), 1),
        ("Emil won the race after falling at the start.", "How would Emil feel afterwards?",
         ("ashamed of winning", "bored by the fall", "proud"), 2),
        ("Anna wrote her grandmother a long letter.", "What does Anna need to do before this?",
         ("find paper and a pen", "read the answer", "forget the address"), 0),
        ("Paul told everybody his friend's secret.", "How would the friend feel as a result?",
         ("rich", "betrayed", "well rested"), 1),
    )
)  # fmt: skip


def _lines(items: tuple[_Item, ...]) -> list[dict[str, Any]]:
    return [{"query": query, "choices": list(choices), "gold": gold} for query, choices, gold in items]


CHOICES: dict[str, list[dict[str, Any]]] = {
    "hellaswag": _lines(_HELLASWAG),
    "arc_easy": _lines(_ARC_EASY),
    "arc_challenge": _lines(_ARC_CHALLENGE),
    "winogrande": _lines(_WINOGRANDE),
    "openbookqa": _lines(_OPENBOOKQA),
    "boolq": _lines(_BOOLQ),
    "copa": _lines(_COPA),
    "siqa": _lines(_SIQA),
}
