"""Prose of ours for language models: what a quantised export is fitted to, and what its loss is measured on. The two share no
subject, so that nothing was chosen by the text of the measure."""

from __future__ import annotations

CALIBRATION_PROSE = """\
The lighthouse at Corran Point had been dark for eleven years when Ada Merrin bought it. The agent who showed her round kept \
apologising, first for the damp, then for the stairs, and finally for the gulls, as though he had arranged them himself. She \
hardly listened. From the gallery at the top she could see the whole bay, the three islands that the fishermen called the \
Sisters, and a long grey line where the weather came from.

"People usually ask about the road," said the agent.

"Is there one?"

"In summer."

She signed the papers on a Thursday. By the end of the month she had moved in with two suitcases, a box of tools and her \
grandfather's barometer, which had not worked since he dropped it in 1974 but which she could not bring herself to leave \
behind. The first thing she repaired was the door. The second was the stove. The lamp could wait, she told herself, although \
she climbed up every evening to look at it.

It was a beautiful machine. Six panels of glass, each as tall as a child, stood round an empty space where the flame had once \
been, and the whole cage floated in a trough of mercury so that a finger could turn it. Or so it had been: somebody had \
drained the trough long ago, and the glass sat on its iron ring like a carousel after the fair has gone home. Ada cleaned one \
panel a week. When the sun set behind her, the polished ones threw bars of orange light across the water, and twice that \
autumn a boat changed its course to see what was the matter.

How bread rises

Bread dough rises because yeast is hungry. Flour contains starch, and enzymes in the flour begin to cut that starch into \
sugars as soon as it becomes wet. The yeast eats the sugars and gives off carbon dioxide and a little alcohol. In a liquid the \
gas would simply bubble away, but dough is not quite a liquid: two proteins of wheat join into a stretchy net called gluten, \
and the net holds the bubbles. Kneading makes the net stronger. It does not make new bubbles; it folds in air, and the carbon \
dioxide then collects in the tiny pockets that are already there.

Temperature decides how fast all this goes. At 5 degrees, in a refrigerator, a dough needs most of a day to double; at 25 \
degrees it needs about an hour and a half; above 45 degrees the yeast begins to die. A slow rise is not merely a nuisance. \
Bacteria that live beside the yeast make acids which give the loaf its taste, and they are less troubled by the cold. For a \
simple loaf you will need:

- 500 grams of strong white flour
- 320 millilitres of water, lukewarm
- 7 grams of dry yeast, or 20 grams of fresh
- 10 grams of salt
- a spoonful of oil for the bowl

Mix everything but the oil, wait ten minutes, and knead until the dough stops sticking to your hands. Let it rise under a \
cloth. Shape it, let it rise again for forty minutes, and bake it at 230 degrees for half an hour. Tap the bottom: if it \
sounds hollow, it is done. If it does not, give it five minutes more, and write down what you did.

A short history of the canal at Wend

In 1771 the town of Wend had nine hundred inhabitants, two mills and no way to sell what they made. Carts took four days to \
reach the coast, and in wet years they did not reach it at all. The mill owners, led by a widow named Hester Vane, hired an \
engineer to survey a canal of nineteen miles. He reported that it could be dug for 42,000 pounds. It cost 118,000, took \
fourteen years and killed at least thirty of the men who worked on it, most of them in the collapse of a tunnel in March 1779. \
Their names are on a stone beside the eastern portal, which the council restored in 1996.

For sixty years the canal did what had been hoped of it. Coal went up, flour and cloth went down, and the price of both fell \
by half. Then the railway came. The company that built it bought the canal as well, raised the tolls, and let the locks rot. \
The last cargo, a load of roofing slate, passed through in 1911. What had been a road for goods became a ditch, then a rubbish \
heap, and for a while in the 1950s there was a plan to fill it and build a car park. A group of schoolchildren, whose teacher \
had asked them to count dragonflies, found seventeen kinds, four of which lived nowhere else in the county. The plan was \
dropped. Today about two thousand boats a year use the canal, none of them in a hurry.

Question: Why does the moon seem larger when it is near the horizon?
Answer: It only seems so. If you measure it with a coin held at arm's length, the moon has the same size wherever it stands. \
Near the horizon we see it beside houses and trees, and our mind compares; high in the sky there is nothing to compare it \
with. Nobody has explained the effect to everyone's satisfaction, but cameras are not fooled.

Question: What should I check before I buy a used bicycle?
Answer: Look at the frame first, because it is the one part that is not worth repairing. Run a finger along the tubes near the \
joints and feel for cracks or dents. Lift each wheel and spin it: it should run straight and stop slowly. Pull the brakes \
hard. Turn the pedals backwards and listen. A worn chain costs little, but a chain that was ridden for years has usually worn \
the gears as well, and those do not. Finally, ask for the receipt, and compare the number under the frame with the one on the \
paper.

Dear Tomas,

Thank you for the photographs, and for the cheese, which arrived in better condition than the box. We have all been well apart \
from Lena's cough. The committee met again last Tuesday and, as you predicted, decided nothing: eight people spoke, six of \
them agreed with one another, and still there was no majority for anything but lunch. I have been asked to write the report. \
Could you send me your figures for May and June? I have 1,240 visitors in May and 1,385 in June, but Karin says that the \
second number includes the school groups and the first does not, in which case we have been comparing apples with orchards.

The garden is a disgrace. I promised myself that I would cut back the roses before you came, and I will, if it ever stops \
raining. Bring boots. Bring the dog too; he is better company than most of the committee.

Yours,
Miriam
"""

QUALITY_PROSE = """\
Every second Saturday, long before the buses ran, my father took me to the market under the bridge to sell clocks. He never \
called them clocks. He called them patients. They came to him in shoe boxes and pillow cases, stopped at ten past four or a \
quarter to nine, and he kept them on a shelf above the kitchen table until he had found out what was wrong. Dust, mostly. \
Sometimes a broken spring. Once, in a heavy brass clock from an office that had burned down, he found a folded letter, and \
although my mother begged him, he never told us what it said. He put it back behind the pendulum and sold the clock to a man \
from the ministry for twice what he had meant to ask.

I was nine, and my task was to mind the cash tin and to look sad when people haggled. "You have the face for it," my father \
said. What I remember best is the cold, and the noise of the trains overhead, and how at eight o'clock all of the patients \
that he had cured began to strike at once, a little before or after one another, so that for half a minute nobody could hear a \
price. Customers laughed. Then they bought, because it is hard to walk away from something that has just greeted you.

When the bridge was closed for repairs the market moved to a hall with heating and numbered stalls. It was better in every way \
that can be counted. My father went twice and then said that his back hurt. The clocks that were left he gave to neighbours, \
one to each floor, and for years afterwards I could tell what time it was by standing on the stairs.

Why the sea has tides

Twice a day, on most coasts, the sea rises and falls. The cause is the moon, and to a smaller degree the sun, but the way it \
works is not what one might guess. The moon pulls at everything on the earth, and it pulls harder at what is nearer. Water on \
the side that faces the moon is drawn a little more strongly than the earth as a whole, and water on the far side a little \
less. The result is two bulges, one under the moon and one opposite to it. As the planet turns, each place passes through \
both, which is why there are two high tides in about twenty-four hours and fifty minutes rather than one. The extra fifty \
minutes are there because the moon itself has moved on.

When sun and moon stand in a line, at new moon and full moon, their effects add up, and the difference between high and low \
water is greatest. A week later they work at right angles, and it is smallest. None of this explains why the tide is half a \
metre in one harbour and twelve metres in another. That depends on the shape of the coast. Water in a bay sloshes to and fro \
with a rhythm of its own, as it does in a bath, and where this rhythm is close to that of the moon, every push arrives at the \
right moment. Islands in the middle of an ocean, by contrast, hardly notice. Engineers have long tried to make use of the \
flow: a mill driven by the tide was grinding corn in Ireland in the year 619, and a modern station with 24 turbines can supply \
a city of 200,000 people, though not at the hours when they would like it.

COUNCIL APPROVES NIGHT TRAM AFTER LONG DEBATE

The city council voted on Wednesday evening to run trams through the night on two of its seven lines, beginning in September. \
The vote was 31 to 24. Supporters said that nurses, bakers and cleaners had waited long enough for a safe way to get to work; \
opponents pointed to the cost, which the transport office puts at 3.6 million a year, and to the sleep of those who live \
beside the tracks. As a compromise, trams will travel at no more than 25 kilometres an hour between midnight and five, and the \
oldest cars, which squeal in curves, will stay in the depot. "I would have preferred nothing at all," said Rolf Ahrens, who \
has a flower shop in Mill Street and lives above it, "but I was asked, and they listened, and that is more than I expected." A \
report on noise and passenger numbers is due after twelve months.

How to keep a small program from becoming a large one

Begin with the data. Write down, on paper if you can, what goes in and what must come out, and for each thing between them ask \
who needs it. Most of the code that nobody dares to touch was written to carry a value from a place where it was not needed to \
a place where it was not used. Give things the names that people use when they talk about them. If two of you say "order" and \
mean different things, find that out before the compiler does. Then make the smallest version that is of use to somebody, and \
let that person use it.

A function that counts the words of a text might look like this:

def count_words(text):
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts

It is wrong in several ways. It takes "end" and "end." for different words, and it has no opinion on hyphens. But it can be \
read in ten seconds, it can be tested in one line, and whoever finds that hyphens matter will know where to look. Resist the \
wish to add an option for every doubt. An option is a question that the author could not answer and therefore passes on to \
everyone else.

User: My tomato plants have yellow leaves near the bottom. Am I watering them too much?
Assistant: Possibly, but it is not the only explanation. Push a finger into the soil: if it is still wet a few centimetres \
down, wait before you water again. If the soil is dry and only the oldest leaves turn yellow, the plant may lack nitrogen, \
which it moves from old leaves to new ones; a little fertiliser every two weeks will help. If the leaves have brown spots with \
rings in them, it is probably a fungus called early blight. Remove those leaves, do not put them on the compost, and water the \
ground instead of the plant.
User: There are no spots. The soil is quite dry.
Assistant: Then feed them, and water them well in the morning. New leaves should be green within ten days. The old ones will \
not recover, so you can cut them off.

The old woman who kept the ferry at Lissan had three rules. Nobody was carried for nothing, not even the priest. Nobody was \
carried drunk. And nobody was carried across who could not say why he was going. The first two were easy to keep, she told my \
uncle, who had come to write about her for a newspaper, but the third had cost her half of her trade. "Young men come down to \
the water in spring," she said, "and they want to be on the other side. Why? They do not know. I tell them to sit on that wall \
until they do. Most of them go home for their supper." And the others? She looked at the river for a while before she \
answered. It was high that week, and brown, and it carried whole trees as if they were straws. "The others," she said, "I take \
across, and they pay me double, and I have never seen one of them come back."
"""
