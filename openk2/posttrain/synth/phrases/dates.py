"""How people ask about the calendar. Slots: date, date2 (any written form), n (a number of days)."""

TABLES = {
    "after.np": """
        the [date|day] {n} days [after|from|past|later than|following] {date}
        {n} days [after|from|past] {date}
        {date} plus {n} days
        {date} + {n} days
        [the date|the day] [that comes|that is|which is|that falls] {n} days after {date}
    """,
    "after.imp": """
        add {n} days to {date}
        [count|go|move|jump|step] {n} days [forward |on |ahead |]from {date}
        [find|compute|calculate|work out|get|name] the [date|day] {n} days [after|from|past] {date}
        [start at|start on|take|begin at|begin on] {date} and [add|go forward|count] {n} days
        [move|push|shift|put off|delay] {date} [by|forward by|back by] {n} days
    """,
    "after.q": """
        [what|which] [date|day] is {n} days [after|from|past] {date}
        [what|which] [date|day] [comes|falls|do we have|is it|will it be] {n} days [after|from] {date}
        what is {date} plus {n} days
        when is {n} days [after|from] {date}
        when are {n} days from {date} [over|up|past]
        [what|which] date do I get if I add {n} days to {date}
    """,
    "after.emb": """
        [what|which] [date|day] is {n} days [after|from] {date}
        [what|which] [date|day] [it is|it will be|we have|comes|falls] {n} days [after|from] {date}
        when {n} days [after|from] {date} is
        when {n} days from {date} are [over|up]
    """,
    "after.full": """
        [it|the trip|my course|the job|the sale|the show] [starts|begins] on {date} and [lasts|takes|runs for] {n} days. when [does it end|is it over|is the end]?
        [I paid|I ordered|it was sent|I sent it] on {date}, and [it takes|it needs|delivery takes] {n} days. [when|which date|on which date] [will it come|does it come|is that]?
        [today is|it is|say it is] {date}. [what|which] [date|day] is it in {n} days?
        from {date}, {n} days [later|on|more]: [what|which] date [is that|is it]?
    """,
    "before.np": """
        the [date|day] {n} days [before|prior to|ahead of|earlier than] {date}
        {n} days [before|prior to] {date}
        {date} minus {n} days
        {date} - {n} days
    """,
    "before.imp": """
        [subtract|take|take away] {n} days from {date}
        [count|go|move|jump|step] [back {n} days|{n} days back|backwards {n} days] from {date}
        [find|compute|calculate|work out|get|name] the [date|day] {n} days [before|prior to] {date}
        [start at|start on|take|begin at] {date} and go back {n} days
    """,
    "before.q": """
        [what|which] [date|day] is {n} days [before|prior to] {date}
        [what|which] [date|day] [was it|comes|falls|did we have] {n} days [before|prior to] {date}
        what is {date} minus {n} days
        when is {n} days before {date}
    """,
    "before.emb": """
        [what|which] [date|day] [is|was|comes|falls] {n} days before {date}
        [what|which] [date|day] it was {n} days before {date}
        when {n} days before {date} is
    """,
    "before.full": """
        [it|the trip|my course|the job|the show] ends on {date} and [lasts|takes|runs for] {n} days. when [does it start|did it start|does it begin]?
        [today is|it is|say it is] {date}. [what|which] [date|day] was it {n} days ago?
        I must [book|pay|call|order] {n} days before {date}. [when|which date] is that?
    """,
    "between.np": """
        the [number of|count of] days [between {date} and {date2}|from {date} to {date2}|from {date} until {date2}]
        the days [between {date} and {date2}|from {date} to {date2}|from {date} until {date2}]
        the [time|distance|gap|difference] in days [between {date} and {date2}|from {date} to {date2}]
    """,
    "between.imp": """
        count the [number of |]days [between {date} and {date2}|from {date} to {date2}|from {date} until {date2}]
        [find|compute|calculate|work out|get] the [number of days|days|time in days|difference in days|gap in days] [between {date} and {date2}|from {date} to {date2}]
        count [from {date} to|the days from {date} until] {date2}
    """,
    "between.q": """
        how many days [are there |are |lie |pass |]between {date} and {date2}
        how many days [is it|is it going to be|are there|do I have|pass|are left|is that] from {date} [to|until|till] {date2}
        how [long|far] is it [in days |]from {date} [to|until] {date2}
        how many days [separate|are between|lie between] {date} and {date2}
        how many days [after|from] {date} is {date2}
        how many days [before|until|to] {date2} is {date}
    """,
    "between.emb": """
        how many days [there are |are |lie |pass |]between {date} and {date2}
        how many days [it is|there are|I have|are left|pass] from {date} [to|until|till] {date2}
        how [long|far] it is in days from {date} [to|until] {date2}
    """,
    "between.full": """
        [I leave|I start|it starts|we go|it opens] on {date} and [come back|finish|it ends|we return|it closes] on {date2}. how many days is that?
        from {date} to {date2}: [how many days|how many days is that|the number of days]?
        [today is|it is|say it is] {date}. how many days [until|to|till|are left until|is it until] {date2}?
        [between {date} and {date2}|from {date} to {date2}], how many days [are there|pass|is it]?
    """,
    "weekday.np": """
        the [weekday|day of the week|name of the day] [of|for|on] {date}
        the weekday that {date} [falls on|is]
    """,
    "weekday.imp": """
        [find|get|work out|look up|name|compute|say|check] the [weekday|day of the week] [of|for] {date}
        name the day of {date}
    """,
    "weekday.q": """
        [what|which] weekday is {date}
        [what|which] day of the week [is|was|will be|is it on|was it on|falls on] {date}
        [what|which] [weekday|day of the week] does {date} fall on
        on [what|which] [weekday|day|day of the week] [does|did|will] {date} fall
        what day [is|was|will be] {date}
        is {date} a [monday|tuesday|wednesday|thursday|friday|saturday|sunday] or what
    """,
    "weekday.emb": """
        [what|which] [weekday|day of the week] {date} [is|was|falls on|will be]
        [what|which] day of the week [it is|it was|it will be] on {date}
        on [what|which] [weekday|day|day of the week] {date} falls
        what day {date} is
    """,
    "weekday.full": """
        I was born on {date}. [what|which] [weekday|day of the week] [was that|was it|is that]?
        [the party|my test|the trip|the meeting|the show|my lesson|the game] is on {date}. [what|which] [weekday|day of the week|day] is that?
        {date}: [what|which] [weekday|day of the week] is [that|it]?
        {date} is [what|which] [weekday|day of the week|day]?
    """,
    "weekday.again": """
        {date}
    """,
    "two_weekdays.q": """
        [what|which] weekdays are {date} and {date2}
        [what|which] days of the week are {date} and {date2}
        on [what|which] weekdays do {date} and {date2} fall
    """,
    "two_weekdays.emb": """
        [what|which] weekdays {date} and {date2} are
    """,
    "two_weekdays.np": """
        the weekdays of {date} and {date2}
        the weekday of {date} and the weekday of {date2}
    """,
}
