"""Names, words and plain facts that tasks draw from; nothing here is phrasing.

`PERSONS`, `CITIES`, `NOTE_KEYS`, `ITEMS` and `WORDS` are split into a training
and a held-out part (see `split.py`); training tasks draw strangers besides; the
rest is common property.
"""

PERSONS = """
    Ada Adam Aisha Alan Albert Alice Amir Amy Andrea Anna Anton Arthur Astrid Ben Bella Boris Bruno Carla Carlos
    Carmen Cecil Celine Chen Chloe Clara Cora Daniel Daria David Diana Diego Dora Edgar Elena Eli Ella Emil Emma
    Eric Erika Esther Eva Fatima Felix Fiona Flora Frank Freya Gina Grace Greta Hana Hans Harry Hasan Hazel Heidi
    Helen Henry Hugo Ida Igor Ines Ingrid Ira Iris Isaac Ivan Jack Jacob Jade James Jan Jana Jasmin Jean Jenny Joan
    Jonas Jose Julia Kai Karen Karim Karl Kate Kenji Kim Klara Kurt Lara Laura Lea Leo Lena Liam Lily Linda Lisa Liu
    Lola Louis Lucas Lucia Luis Luna Maja Malik Marco Maria Marie Mario Mark Marta Martin Mary Max Maya Mia Mike
    Mila Mina Mona Nadia Nina Noah Nora Nuri Olaf Olga Oliver Omar Oscar Otto Pablo Paul Pedro Peter Petra Pia
    Rafael Rahim Ralph Rania Ravi Rita Robert Rosa Ruth Sam Samir Sara Selma Simon Sofia Stella Susan Sven Tara Teo
    Thea Tim Tina Tom Uma Vera Victor Wanda Walter Wei Xenia Yara Yuki Zara Zoe
""".split()

CITIES = """
    Athens Bath Bern Bonn Boston Bremen Brest Chicago Cork Dakar Dallas Delhi Denver Dover Dublin Essen Geneva Genoa
    Ghent Graz Hanoi Havana Kiel Kyoto Leeds Lille Lima Lisbon Lyon Mainz Malmo Manila Miami Milan Minsk Munich
    Nairobi Naples Nice Odessa Osaka Oslo Oxford Perth Pisa Porto Prague Quito Reno Riga Rome Accra Adana Almaty
    Baku Basel Bergen Bogota Brno Bruges Busan Cadiz Calgary Cannes Cardiff Cologne Corfu Davos Delft Dundee Exeter
    Galway Gdansk Goa Haifa Hull Jena Kazan Krakow Lagos Leiden Linz Lucca Luxor Lviv Macau Metz Nantes Omsk Oran
    Padua Parma Patras Pecs Pune Ravenna Rouen Salem Sibiu Sydney Tartu Tirana Turku Utrecht Varna Verona Vigo Seoul
    Siena Sofia Split Tampa Trento Tunis Turin Ulm Vienna Warsaw York Zagreb Zurich
""".split()

NOTE_KEYS = """
    shopping wifi door car plan lunch dinner team birthday gift school trip party garden doctor dentist bank code
    key bike book music movie game room desk hotel flight train bus taxi ticket gym coffee tea recipe cake pizza
    rent bill tax phone mail list idea joke song dog cat horse fish boat tent camp beach lake river forest ski snow
    office boss meeting call visit guest friend family mother father sister brother baby house roof window lamp
    paint tool box shelf library museum cinema theatre market bakery wallet jacket shoes hat umbrella camera laptop
    printer screen
""".split()

ITEMS = """
    milk bread eggs butter cheese apples pears plums grapes lemons onions carrots beans rice pasta soup salt sugar
    honey flour yeast oil juice water tea coffee cake nuts salad tomatoes potatoes corn peas fish ham soap paper
    pens pencils stamps tape glue nails screws paint bulbs batteries candles flowers seeds socks shirts gloves shoes
    towels plates cups spoons forks knives pots pans lamps chairs books maps tickets cards keys bags boxes balls
    toys rope wire wood sand bricks tiles hooks rugs mugs jars lids trays combs brushes sponges mops brooms nets
    tents skates dolls kites drums flutes belts coats scarves boots rings beads ribbons yarn thread buttons zips jam
    mustard vinegar
""".split()

THINGS = """
    apples books coins stamps cards pencils eggs cups plates chairs tickets stones shells flowers boxes bottles
    balls cakes letters photos oranges points stickers candles
""".split()

# Note texts: a pattern with a person, an item, a city, a place or a number in it.
NOTE_TEXTS = """
    buy {item}
    get {item} and {item2}
    bring {item}
    no more {item}
    {item} for {person}
    call {person}
    ask {person}
    meet {person}
    pay {person} {n}
    write to {person}
    {person} has it
    {person} in {city}
    go to {city}
    train to {city}
    {city} at {h}
    at {h} in {city}
    with {person} at {h}
    number {n}
    {n} {item}
    code {n}
    room {n}
    {person} and {person2}
    {item}, {item2}
    {item} from {city}
"""

WORDS = """
    apple house river stone bread green light water chair table music paper horse cloud garden window summer winter
    orange yellow bridge street doctor flower pencil silver castle monkey rabbit spoon tiger lemon candle basket
    button carpet dinner engine finger guitar hammer island jacket kitten ladder mirror needle pepper pocket rocket
    school ticket turtle valley wallet
""".split()

# Words that training tasks use as names besides the pools above, so that naming cannot be learnt by heart.
STRANGERS = """
    acorn actor admiral agent airport album alley almond altar amber anchor angel animal ankle answer apron arch arena
    army arrow artist attic aunt autumn avenue badge baker balcony ballet bamboo banana banjo banker barn barrel basin
    beard beast beaver beetle bishop blanket blossom bonus border bottom bowl brain branch brass breeze bride broker
    bronze bubble bucket buffalo builder bullet bunker burden butcher cabin cable cactus camel canal canary cannon
    canoe captain caravan cargo carrot cave cedar cellar cement chain chapel chapter charm cherry chest chief chimney
    circle circus citizen claim clerk cliff clinic closet cloth clown coach coal coast cobra cocoa collar colony
    column comet compass concert copper coral corner cotton council cousin cradle crane cream creek crew cricket crown
    crystal curtain cushion dagger dairy dancer dawn debate decade deer degree desert diamond diary dinosaur dragon
    drawer dream driver duck dust eagle earth echo editor elbow elephant emperor empire enemy engineer error estate
    exam fabric factory falcon farmer feather fence festival field fiddle figure fisher flag flame flute fog folder
    fool forge fork fortune fountain fox frame freedom frost fruit funnel galaxy gallery gamble gate general ghost
    giant ginger glacier glass globe glory goal goat gold goose grain granite gravel grove guard guide gulf habit hall
    harbor harvest hawk hedge hero hill hollow horizon hospital hotline hunter hut idol ink insect iron ivory ivy jar
    jewel jockey journal judge juice jungle jury kettle kidney king kiosk knight knot label lace lady lantern lawyer
    leader leather legend lemonade lens letter lever liberty lightning lily lion lizard lobby lock lodge lord lumber
    lunch magnet maiden manor maple marble march marsh mask mason master matter meadow medal melody member memory
    merchant metal meteor mill miner minister mint miracle model monk moon mosque motor mouse mud mule muscle mystery
    napkin nation nature navy neck nephew nerve nest noble noise north novel nurse oak oasis ocean octopus
    office olive onion opera orbit orchard organ orphan otter outlaw oven owl oyster palace palm panda panther parade
    parcel pardon parent parrot partner passage pasture patrol pearl peasant pelican penguin people petal piano pigeon
    pillar pilot pine pioneer pirate planet plaster player plaza pocket poem poet pole pond pony poppy portrait powder
    prairie priest prince prison prize profit prophet pulse pump pupil puppet purple pyramid quarry queen quiver
    radar radio rail rainbow ranch ranger raven razor rebel region reptile rescue ribbon rider ring ritual rival road
    robin robot rooster root rose ruby ruler saddle sailor saint salmon sample satin sauce scale scholar science scout
    sculptor seal season secret senate servant shadow shark sheep shelter shepherd sheriff shield shore shovel shrimp
    signal singer sister slave sleeve slope smoke snail soldier song spark sparrow spear spider spirit spring squire
    stable stage statue steam steel stick storm stove straw stream string sugar sunset surgeon swamp sword symbol
    tailor talent tank tavern teacher temple theater thief thorn throne thunder tide timber tobacco tomb torch tower
    trader trail traitor treasure treaty tribe trumpet tunnel tutor twig tyrant uncle uniform vapor vault velvet vessel
    village villain vine violin virtue voice volcano voyage wagon walnut warden warrior water weapon weaver wedding
    whale wheat wheel whisper widow wing witch witness wizard wolf wonder wool worker world worm wreath yacht zebra
""".split()
# Everyday words, of which other invented names are glued: the front of one and the back of another. A vocabulary has
# pieces that no list of names meets, and a piece that was never copied is not copied.
EVERYDAY = """
    able above accept access account across action active actual adapt address adjust advance advice affect afford
    again ahead aid aim air alarm alert alive allow alone along alter amount annual appear apply approve argue around
    arrange arrive aside assign assume attach attack attempt attend author avoid await award aware balance barely base
    batch became become begin behalf behave behind being believe belong below bend beneath beside beyond blank blend
    block blow board body bond boost bound brave break brief broad budget build burn burst button cache capable carry
    cast catch cause central certain challenge chance chase check child choice choose claim class clause clever climb
    close code collect combine come comma comment common compare compile complete compute concern confirm connect
    consider constant contain content context continue contract control convert correct counter courage court cover
    craft create credit crisis crowd culture current custom cycle damage danger data deal debug decide declare decline
    decode decrease deep default defend define delay delete deliver demand deny depend deploy derive describe deserve
    design desire destroy detail detect develop device differ digit direct discover discuss display distant divide
    document domain double doubt draft draw dream drive drop during eager earn easy edge edit effect effort element
    embrace emerge employ enable encode encounter endure energy engage enjoy enough ensure enter entire entry equal
    equip escape essay even event evident exact examine except exchange execute exist expand expect expert explain
    explore export express extend extra extract face fail fair faith fall false fame famous fancy fast fatal fault
    favor fear feature feed feel fetch fever final finish firm fix flash flat flavor float flood floor flow focus fold
    follow force foreign forget formal format former forward frame fresh front frozen function future gain gather
    gentle genuine give global govern grace grade grand grant graph gray group grow growth guess guide half hand
    handle happen harm haste head health hear heart heavy height hidden highest history hold home honest honor hope
    host huge human humble hurry hurt idea ignore image impact import impose improve include income increase indeed
    indent inform inner input insert inside inspire install intend invite invoke issue item iterate itself join joint
    jump just keen keep kind kit knee know labor lack language large last laugh launch layer lead learn leave left
    legal length level liable light limit linear link listen literal little live load local locate logic long look
    loop loose loss loud lower loyal luck main major make manage manner manual many mark mass match maximum maybe mean
    measure mention merge message method middle might mild mind minimum minor minus mirror miss mix mobile mode modern
    modify module moral mount mouth move much multiple must mutual naive narrow native near need neglect neither
    nested neutral never next nobody none normal notice nothing null object obtain obvious occur offer officer offset
    often omit once only onto open operate oppose option order origin other ought ounce outer output outside over own
    pack pain pair panel parse part pass past patch path patient pattern pause peace peak perfect perform perhaps
    permit phrase pick piece pink place plain plan play please pledge plenty point policy poor popular port possible
    post pound pour power praise prefix prepare present press pretty prevent primary print prior private problem
    process produce program promise proof proper protect proud prove provide public publish pull pure purpose push
    quality quantity question queue quick quiet quit quote raise random range rapid rare rather reach react read ready
    real reason receive recent record recover reduce refer refuse regard reject relate relax release rely remain
    remind remote repair repeat replace reply request require resolve respect respond rest result resume retain return
    reveal reverse reward rich right rise risk roll rough round route routine rule run rush sad safe sake salary same
    save say scan schedule schema scope score screen script search seat second section secure seek seem select self
    send sense separate sequence serial serious serve session settle setup seven severe shade shall shape share sharp
    shift shine shock short should show sight sign silent simple since single size skill skip sleep slice slide slight
    slow small smart smile smooth social socket soft solid solve some soon sorry sort soul sound source space speak
    special spend spirit split spread stack staff stand standard stare start state status stay steady step still stock
    stop story strange strategy strength stretch strict strike strong structure struggle study stuff style submit
    subtle succeed such sudden suffer suggest suit super supply support suppose sure surface surprise survive swap
    sweet swift switch syntax system table tail take talk target task taste teach tell tend term test text thank theme
    theory there thick thin thing think thought thread threat thus tight tiny title toggle token tone tool top topic
    total touch tough toward trace track trade train transfer travel treat trial trick trigger trim trouble true trust
    truth tuple turn twice type unable under union unique unit unless until update upon upper usage useful usual valid
    value vary vast verb verify version very victim view virtual visible vision visit vital void vote wait walk wall
    want warm warn waste watch weak wealth wear weigh welcome well what when where whether which while whole wide wild
    will win wire wise wish within without word work worry worth would wound wrap write wrong yield young zero zone
""".split()
# What the others are made of: two or three syllables of these.
ONSETS = "b br c ch d dr f g gr h j k kl l m n p pl qu r s sh sk st t th tr v w y z".split()
NUCLEI = "a e i o u a e i o u ai ea ie oo ou".split()
CODAS = ["", "", "", *"ck l ll m n nd ng nt r rd rt s sk st t th x".split()]

OPPOSITES = """
    hot:cold big:small long:short up:down open:closed fast:slow old:new day:night left:right full:empty early:late
    happy:sad high:low hard:soft wet:dry light:dark rich:poor strong:weak good:bad first:last near:far true:false
    black:white in:out yes:no love:hate start:end young:old clean:dirty heavy:light thick:thin loud:quiet
""".split()

# Simple questions and their answers, in our own words.
FACTS = """
    what colour is grass? | Grass is green.
    what colour is snow? | Snow is white.
    what colour is the sky on a clear day? | The sky is blue.
    what colour is a lemon? | A lemon is yellow.
    what colour is blood? | Blood is red.
    what colour is coal? | Coal is black.
    how many legs does a dog have? | A dog has four legs.
    how many legs does a spider have? | A spider has eight legs.
    how many legs does an insect have? | An insect has six legs.
    how many days are in a week? | A week has seven days.
    how many months are in a year? | A year has twelve months.
    how many hours does a day have? | A day has twenty-four hours.
    how many minutes are in an hour? | An hour has sixty minutes.
    how many sides does a triangle have? | A triangle has three sides.
    how many sides does a square have? | A square has four sides.
    what is the capital of France? | The capital of France is Paris.
    what is the capital of Italy? | The capital of Italy is Rome.
    what is the capital of Spain? | The capital of Spain is Madrid.
    what is the capital of Germany? | The capital of Germany is Berlin.
    what is the capital of Japan? | The capital of Japan is Tokyo.
    what is the capital of Egypt? | The capital of Egypt is Cairo.
    what is the capital of England? | The capital of England is London.
    what do bees make? | Bees make honey.
    what do cows eat? | Cows eat grass.
    what do cows give us? | Cows give us milk.
    where do fish live? | Fish live in water.
    where does the sun rise? | The sun rises in the east.
    where does the sun set? | The sun sets in the west.
    what is frozen water called? | Frozen water is called ice.
    what is a young dog called? | A young dog is called a puppy.
    what is a young cat called? | A young cat is called a kitten.
    what is a group of sheep called? | It is called a flock.
    which season comes after winter? | Spring comes after winter.
    which season comes after summer? | Autumn comes after summer.
    which day comes after monday? | Tuesday comes after Monday.
    which day comes after friday? | Saturday comes after Friday.
    which month comes after may? | June comes after May.
    which month is the first of the year? | January is the first month.
    which month is the last of the year? | December is the last month.
    what is the largest animal in the sea? | The blue whale is the largest.
    what is the tallest animal? | The giraffe is the tallest animal.
    which animal says moo? | A cow says moo.
    which animal barks? | A dog barks.
    is the sun a star? | Yes, the sun is a star.
    is the moon a star? | No, the moon is not a star.
    is fire cold? | No, fire is hot.
    is ice warm? | No, ice is cold.
    is a whale a fish? | No, a whale is a mammal.
    is a bat a bird? | No, a bat is a mammal.
    is bread food? | Yes, bread is food.
    can birds fly? | Yes, most birds can fly.
    can a stone swim? | No, a stone sinks.
    can fish walk? | No, fish swim.
    do cats like milk? | Yes, most cats like milk.
    do trees have leaves? | Yes, most trees have leaves.
    do people need water? | Yes, people need water.
    what do you use to write? | You write with a pen.
    what do you use to cut paper? | You cut paper with scissors.
    what do you wear on your feet? | You wear shoes on your feet.
    what do you wear on your head? | You wear a hat on your head.
    what do we breathe? | We breathe air.
    what do we see with? | We see with our eyes.
    what do we hear with? | We hear with our ears.
    what gives us light by day? | The sun gives us light.
    what falls from the clouds? | Rain falls from the clouds.
    what is bread made of? | Bread is made of flour.
    what is paper made of? | Paper is made of wood.
    what is a doctor for? | A doctor helps sick people.
    what is a library for? | A library lends books.
    what is a clock for? | A clock shows the time.
"""

# Ways to write a unit; the first is the tool's own spelling.
UNIT_WORDS = {
    "meters": ("meters", "metres", "m"),
    "kilometers": ("kilometers", "kilometres", "km"),
    "centimeters": ("centimeters", "centimetres", "cm"),
    "millimeters": ("millimeters", "mm"),
    "miles": ("miles", "miles", "mi"),
    "yards": ("yards", "yards", "yd"),
    "feet": ("feet", "feet", "ft"),
    "inches": ("inches", "inches", "in"),
    "kilograms": ("kilograms", "kilos", "kg"),
    "grams": ("grams", "grams", "g"),
    "tonnes": ("tonnes", "tons"),
    "pounds": ("pounds", "pounds", "lbs", "lb"),
    "ounces": ("ounces", "ounces", "oz"),
    "liters": ("liters", "litres"),
    "milliliters": ("milliliters", "ml"),
    "gallons": ("gallons", "gallons"),
    "pints": ("pints", "pints"),
    "cups": ("cups", "cups"),
    "quarts": ("quarts", "quarts"),
    "seconds": ("seconds", "seconds", "sec"),
    "minutes": ("minutes", "minutes", "min"),
    "hours": ("hours", "hours"),
    "days": ("days", "days"),
    "weeks": ("weeks", "weeks"),
    "celsius": ("celsius", "degrees celsius", "C"),
    "fahrenheit": ("fahrenheit", "degrees fahrenheit", "F"),
    "kelvin": ("kelvin", "kelvin", "K"),
    "kilometers per hour": ("kilometers per hour", "km/h"),
    "miles per hour": ("miles per hour", "mph"),
    "knots": ("knots", "knots"),
}
UNIT_GROUPS = (
    "meters kilometers centimeters millimeters miles yards feet inches".split(),
    "kilograms grams tonnes pounds ounces".split(),
    "liters milliliters gallons pints cups quarts".split(),
    "seconds minutes hours days weeks".split(),
    "celsius fahrenheit kelvin".split(),
    ["kilometers per hour", "miles per hour", "knots"],
)

# What a file of the git fixture holds, in words.
GIT_FIELDS = {
    "OWNER": ("owner", "owner"),
    "LANGUAGE": ("language", "programming language"),
    "LICENSE": ("license", "licence"),
    "COLOR": ("color", "colour"),
    "PORT": ("port", "port number"),
    "VERSION": ("version", "version number"),
}
