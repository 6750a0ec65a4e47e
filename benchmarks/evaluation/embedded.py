"""A few items written for this project, so that the command runs without data. Far too few for a result."""

from typing import Any

from benchmarks.evaluation.embedded_choices import CHOICES

NOTE = "8 items written for this project; too few to compare models"

EMBEDDED: dict[str, list[dict[str, Any]]] = {
    "lambada_openai": [
        {
            "text": "The lighthouse keeper climbed the stairs every evening to light the lamp. One night the wind blew "
            "so hard that the door jammed, and for the first time in thirty years nobody lit the lamp"
        },
        {
            "text": "Mira had lost her red scarf on the train. She asked the driver, the guard and the old man at the "
            "kiosk. At last the old man reached under his counter and handed her the scarf"
        },
        {
            "text": "My grandfather kept bees behind the orchard. He said that a garden without bees was only a green "
            "room, and every spring he sat by the hives and listened to the bees"
        },
        {
            "text": '"You cannot mend a clock with a hammer," said Anton. He laid the hammer aside, took out the '
            "smallest screwdriver he owned, and bent over the clock"
        },
        {
            "text": "The ferry was late, and the passengers stood on the pier and stared at the fog. Then a horn "
            "sounded twice, somebody cheered, and out of the fog came the ferry"
        },
        {
            "text": "They had carried the piano up four floors, one step at a time. When it stood in the room at last, "
            "Lena opened the lid, sat down, and none of them minded that she could not play the piano"
        },
        {
            "text": "Nobody in the village owned a map, because everybody knew the way. So when the stranger asked for "
            "the road to the mill, the children laughed and walked with him to the mill"
        },
        {
            "text": "The baker rose at three, while the street was dark. By six the whole street smelled of warm "
            "bread, and at seven the first customers came in and asked for bread"
        },
    ],
    "piqa": [
        {
            "goal": "How do you keep a wooden door from sticking in damp weather?",
            "sol1": "Plane a little wood off the edge that rubs against the frame.",
            "sol2": "Plane a little water off the edge that rubs against the frame.",
            "label": 0,
        },
        {
            "goal": "To find out whether an egg is fresh,",
            "sol1": "lay it in a bowl of gravel and see whether it floats.",
            "sol2": "lay it in a bowl of cold water and see whether it floats.",
            "label": 1,
        },
        {
            "goal": "How do you carry a hot pot from the stove to the table?",
            "sol1": "Hold both handles with oven gloves and put it down on a trivet.",
            "sol2": "Hold both handles with wet paper and put it down on a trivet.",
            "label": 0,
        },
        {
            "goal": "To stop a picture on the wall from hanging crooked,",
            "sol1": "hang it from two nails that are one above the other.",
            "sol2": "hang it from two nails at the same height.",
            "label": 1,
        },
        {
            "goal": "How do you get the last of the honey out of a jar?",
            "sol1": "Stand the closed jar in warm water until the honey runs.",
            "sol2": "Stand the closed jar in the freezer until the honey runs.",
            "label": 0,
        },
        {
            "goal": "To read a book in a tent at night,",
            "sol1": "hang a full water bottle above the page.",
            "sol2": "hang a small lamp above the page.",
            "label": 1,
        },
        {
            "goal": "How do you thread a needle when the end of the thread is frayed?",
            "sol1": "Cut the end off at a slant and moisten it.",
            "sol2": "Cut the eye off at a slant and moisten it.",
            "label": 0,
        },
        {
            "goal": "To dry wet shoes overnight,",
            "sol1": "stuff them with ice cubes and change these once.",
            "sol2": "stuff them with newspaper and change this once.",
            "label": 1,
        },
    ],
    **CHOICES,
}
