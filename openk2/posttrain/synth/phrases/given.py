"""Requests in two steps: first what is given, then what is asked of it, in either order; and bare keywords.

`K.given` is a statement without its mark, `K.ask` a question or an order with
it; `frame.given` joins them. `K.tele` is the request in keywords, as people
type to a search box.
"""

TABLES = {
    "frame.given": """
        <given>. <ask>
        <given>. <ask>
        <given>. [can you help?|here is what I need:|so,|now,|then|ok,] <ask>
        <given>, [so|and|and now|and here is what I need:|then|and then] <ask>
        <given>: <ask>
        <given> - <ask>
        [if|when|say|as|let us say|suppose|imagine|well,] <given>, <ask>
        <ask> <given>.
        <ask> [for that|because|you see,|I mean,|note that|here] <given>.
        <open> <given>. <ask>
        <context> <given>. <ask>
        <given>. <ask> <close>
    """,
    "frame.tele": """
        <core>
        <core>
        <core>[?|.|, please|, thanks|!]
        [ok|so|hi|hello|now|please|need|want|find|get|quick:|question:|next:] <core>
        <open> <core>
        <core> <close>
    """,
    "add.given": """
        [the numbers|the values|my numbers|the amounts|the two numbers] are {a} and {b}
        I [have|got|see|take|wrote down] {a} and {b}
        there [is|are] {a} and [there are|then|also|another] {b}
        [one|the first|the first number] is {a} and [the other|the second|the second number|another] is {b}
        {name} [has|paid|found|counted] {a} and I [have|paid|found|counted] {b}
        I [counted|bought|sold|made|used] {a} {thing} [on monday|first|yesterday|in the morning] and {b} [on friday|later|today|at night]
    """,
    "add.ask": """
        what is [the sum|the total|their sum|their total|it all together|that in total]?
        [what|how much|how many] [do they make|is that|is it|are they|do we get|do we have] [together|in total|in all|all together|when added]?
        [add|sum] them[ up| together|][.|, please.]
        [find|compute|calculate|give me|tell me|work out|I need|I want] [the sum|the total|their sum|their total].
        [please |can you |could you |]add [both|both numbers|the two|one to the other][.|?]
    """,
    "add.tele": """
        sum {a} {b}
        [sum|total|plus]: {a}, {b}
        {a} {b} [sum|total|together|added]
        {a} plus {b}
    """,
    "sub.given": """
        I [have|had|got] {a} and [spend|spent|lost|lose|give away|gave away|use|used|sold|owe] {b}
        [the price|the total|the bill] [is|was] {a} and [I paid|I have paid|we paid|{name} paid] {b}
        [there are|there were|we had] {a} {thing} and {b} [are gone|were sold|were eaten|are broken|were lost]
        {name} [has|had] {a} {thing} and [gives|gave|sells|sold|loses|lost] {b}
    """,
    "sub.ask": """
        [what|how much|how many] [is|are] left[ over| now| then|]?
        [what|how much|how many] [remains|remain|do I still have|is still there|is missing|do we have now|is the rest]?
        [subtract|take] [the second|the smaller number|the last number] from the first.
        [find|tell me|work out|give me|I need] [the rest|what is left|what remains|the difference].
    """,
    "sub.tele": """
        {a} minus {b}
        difference {a} {b}
        [difference|minus]: {a}, {b}
        {a} less {b}
    """,
    "mul.given": """
        [the numbers|the values|my numbers|the two numbers] are {a} and {b}
        I [have|got|see|take|wrote down] {a} and {b}
        [one|the first|the first number] is {a} and [the other|the second|the second number] is {b}
    """,
    "mul.ask": """
        what is [the product|their product|one times the other]?
        [what|how much] [do they make|is that|is it|do we get|do I get] [multiplied|when multiplied|if I multiply them|if you multiply them]?
        multiply [them|both|both numbers|the two|the first by the second|one by the other][.|, please.]
        [find|compute|calculate|give me|tell me|work out|I need|I want] [the product|their product].
    """,
    "mul.tele": """
        product {a} {b}
        [product|times|multiply]: {a}, {b}
        {a} times {b}
        multiply {a} {b}
    """,
    "div.given": """
        I have {a} {thing} and [there are {b} people|{b} people share them|{b} boxes|{b} bags|we are {b} people|{b} friends]
        [the total|the number|the bill|the sum|the amount] is {a} and [we are|there are|I have] {b} [people|friends|of us|in the group]
        {b} [people|children|friends|teams] [get|share|have] {a} {thing}
    """,
    "div.ask": """
        [what|how much|how many] [does each get|does one get|is it for each|is that each|goes to each one|is one part]?
        [divide|split|share] [it|them|that][ evenly| equally|].
        [find|tell me|work out|give me|I need] [what each gets|the part of each one|one part|each share].
    """,
    "div.tele": """
        {a} divided by {b}
        [divide|division|quotient]: {a}, {b}
        divide {a} {b}
        {a} over {b}
    """,
    "after.given": """
        [it|the trip|the course|the job|the show|the rent|my holiday|our project] [starts|begins|started|began] on {date}
        [the date|the day|my date|the first day|the start|day one] is {date}
        [today is|it is now|we have|we write|take|I have|the letter says|it was sent on|I paid on|I start on] {date}
    """,
    "after.ask": """
        [what|which] [date|day] is [it |]{n} days [later|after that|after it|from then|from there|on]?
        [add|count|go forward|go on] {n} days[ to it| from there|][.|, please.]
        [what|which] [date|day] [comes|is|do we have] after {n} days?
        [when are|when will] {n} days [be over|over|have passed|be up]?
        [find|tell me|work out|give me|I need] the [date|day] {n} days [later|after that|after it|from then].
        [it takes|it lasts|there are|we have] {n} days, so when [is it over|does it end|is the end]?
    """,
    "after.tele": """
        {date} plus {n} days
        {n} days after {date}
        {date}, {n} days later
        date, {n} days from {date}
    """,
    "before.given": """
        [it|the trip|the course|the job|the show|my holiday|our project] [ends|ended|is over|stops] on {date}
        [the date|the day|my date|the last day|the end] is {date}
        [today is|it is now|we have|we write|take|I have|the party is on|the test is on] {date}
    """,
    "before.ask": """
        [what|which] [date|day] [was|is] [it |]{n} days [earlier|before that|before it|before then|ago]?
        [subtract|go back|count back|take away] {n} days[ from it| from there|][.|, please.]
        [find|tell me|work out|give me|I need] the [date|day] {n} days [earlier|before that|before it|before then].
        [it took|it lasted|it takes|it lasts] {n} days, so when [did it start|did it begin|was the start]?
    """,
    "before.tele": """
        {date} minus {n} days
        {n} days before {date}
        {date}, {n} days earlier
    """,
    "between.given": """
        [it|the trip|the course|the job|the show|my holiday|our project] [starts|begins|started|began] on {date} and [ends|stops|is over|ended] on {date2}
        the [first|start|starting] [date|day] is {date} and the [second|last|end|other] [one|date|day] is {date2}
        [take|I have|here are|there are|we have|see] [the dates|the days|two dates:|two days:|] {date} and {date2}
        [I was|we were|she was|he was] [there|away|ill|in the hotel|on the road] from {date} to {date2}
    """,
    "between.ask": """
        how many days [is that|is it|are between|are there|lie between|are in between|did it take|does it take]?
        [count|find|tell me|give me|work out|I need|I want] the [days|number of days|days between|days in between|time in days].
        how long is [it|that|this] in days?
        what is the [difference|number|gap|time] in days?
    """,
    "between.tele": """
        days {date} {date2}
        days {date} to {date2}
        {date} to {date2} in days
        {date} until {date2}, days
        number of days, {date} to {date2}
    """,
    "weekday.given": """
        [the date|my date|our date|the day] is {date}
        [it|the party|the test|the trip|the meeting|the wedding|the game|my birthday] [is|was|will be|happens] on {date}
        [I have|take|there is|we have|here is|look at|I see] [the date|a date:|the day|] {date}
        [I was born|he was born|she was born|we met|they met|it opened|it happened|I moved] on {date}
    """,
    "weekday.ask": """
        [what|which] weekday [is|was|would be] [it|that|this]?
        [what|which] day of the week [is|was|would be] [it|that|this]?
        [name|find|tell me|give me|say|work out|I need|I want] [the weekday|the day of the week|its weekday|that weekday].
        [is it|was it|is that] a [monday|tuesday|wednesday|thursday|friday|saturday|sunday]?
        on [what|which] [weekday|day of the week] [is|was|does|did] [it|that][ fall|]?
    """,
    "weekday.tele": """
        weekday {date}
        {date} weekday
        {date}, day of the week
        day of the week {date}
        weekday of {date}
    """,
    "convert.given": """
        I [have|need|want|got|used|see|bought|sold|ordered|counted] {v} {u}
        [it|this|that|the bag|the box|the road|the pool|the room|the value|the answer] [is|was|has|shows|gives] {v} {u}
        [the label|the sign|the recipe|the map|the book|the list|the report|{name}] [says|said|shows|gives] {v} {u}
        [take|say|there are|we have|here are] {v} {u}
    """,
    "convert.ask": """
        [what|how much|how many] is [that|it|this] in {w}?
        how many {w} [is|are|would be|make] [that|it|they|this]?
        [convert|change|turn|translate] [it|that|them|this] [to|into] {w}[.|, please.]
        [give|show|tell|write|say] [it|that] [to me |]in {w}.
        [I need|I want|I would like|find|work out] [the {w}|it in {w}|the value in {w}|that in {w}].
        and in {w}?
    """,
    "convert.tele": """
        {v} {u} {w}
        {v} {u} to {w}
        convert {v} {u} {w}
        {w} from {v} {u}
        {v} {u}, {w}
    """,
    "set.given": """
        [the note|my note|a note|the new note|it] [is called|is named|has the name] {key}
        [the name|its name|the title|the key] is {key}
        [it is|this is|here is something] [for|about] {key}
    """,
    "set.ask": """
        [write|save|put|keep|note|store|remember][ down|]: {text}.
        [the text|its text|the content] is[:|] {text}.
        [write|save|put|keep|store] {text} [in it|there|in there].
        it [says|should say|must say|has to say]: {text}.
    """,
    "set.tele": """
        note {key}: {text}
        {key} note: {text}
        save {key}: {text}
        new note {key}: {text}
    """,
    "get.given": """
        I [have|made|saved|left|wrote|keep] a note [called|named|about|under|for|with the name] {key}
        [there is|you have|we have] a note [called|named|about|under|for|] {key}
        [the note|my note|its name|the name] is {key}
        [it is|this is|I ask] about [the|my] note {key}
    """,
    "get.ask": """
        what [does it say|is in it|did I write|did I save|is written there|is the text|was it]?
        [read|show|open|tell|give] [it|it to me|me the text|me what it says|me the words].
        [can|could] you [read|open|check|look up|find] it[ for me|][?|, please?]
        [I need|I want|I would like] [to read it|to see it|the text|the words|to know what it says].
    """,
    "get.tele": """
        note {key}
        {key} note
        read {key}
        {key}, my note
        note: {key}
    """,
    "cell.given": """
        [the name|the row|the entry|it|my question] is [about |]{row}
        [I mean|take|look at|I ask about|it is about|go to|find|I am thinking of|search for] {row}
        [there is|you know|we have|the table has|you can see] {row}[ in the table| in the list|]
    """,
    "cell.ask": """
        [what|which] is [the|its] {col}?
        [what|which] {col} [is listed|is given|is there|is stored|does it say|do you see|can you find]?
        [give me|tell me|find|read|show me|I need|I want|look up|check] [the|its] {col}.
        and the {col}?
    """,
    "cell.tele": """
        {row} {col}
        {col} {row}
        {col}: {row}
        {row}, {col}
        {table} {row} {col}
    """,
    "table.given": """
        [there is|we have|you have|I have|here is|look at|take|open] [a table|the table|a list|our table] [of|with|about] {table}
        it is about [the |all |our |]{table}
        [the table|the list] [holds|has|lists|shows] {table}
    """,
    "count.ask": """
        how many [are there|are in it|are there in all|does it have|does it hold|are listed|do you see]?
        [count|please count] them[ all|].
        [find|tell me|give me|I need|I want] [the number of them|how many there are|their number|the number of rows].
        how many [rows|lines|entries|records] [are there|are in it|has it|does it have]?
    """,
    "count.tele": """
        number of {table}
        count {table}
        {table} count
        number of rows
    """,
    "more.ask": """
        how many have [a |]{col} [over|above|more than|greater than|of more than|higher than] {n}?
        count [those|the ones|the rows|all] [with|that have] [a |]{col} [over|above|more than|greater than] {n}.
        how many [go|are|get] [over|above] {n} in {col}?
    """,
    "more.tele": """
        {table} {col} over {n}
        number of {table} with {col} above {n}
        count {col} more than {n}
    """,
    "less.ask": """
        how many have [a |]{col} [under|below|less than|smaller than|of less than|lower than] {n}?
        count [those|the ones|the rows|all] [with|that have] [a |]{col} [under|below|less than|smaller than] {n}.
        how many [go|are|get] [under|below] {n} in {col}?
    """,
    "less.tele": """
        {table} {col} under {n}
        number of {table} with {col} below {n}
        count {col} less than {n}
    """,
    "most.ask": """
        [what|which] is the [highest|largest|greatest|biggest|maximum|top] {col}?
        [give me|tell me|find|show me|I need|I want|look up] the [highest|largest|greatest|biggest|maximum|top] {col}.
        how [high|large|big] is the {col} at most?
    """,
    "most.tele": """
        [highest|largest|greatest|maximum|max|top] {col}
        {col} [maximum|max|at most]
        {table} [highest|largest|maximum] {col}
    """,
    "least.ask": """
        [what|which] is the [lowest|smallest|least|minimum] {col}?
        [give me|tell me|find|show me|I need|I want|look up] the [lowest|smallest|least|minimum] {col}.
        how [low|small] is the {col} at least?
    """,
    "least.tele": """
        [lowest|smallest|least|minimum|min] {col}
        {col} [minimum|min|at least]
        {table} [lowest|smallest|minimum] {col}
    """,
    "sum.ask": """
        what is the [total|sum|whole] [of the |]{col}?
        [add up|sum|total] the {col}[ of them all| of each one|].
        [give me|tell me|find|I need|I want|work out] the [total|sum of the] {col}.
        how much {col} is [that|it|there] [in total|together|in all]?
    """,
    "sum.tele": """
        [total|sum] {col}
        {col} [total|sum|in total]
        {table} {col} [total|sum]
    """,
    "show.given": """
        [the repository|the project] is {repo} and the branch is {branch}
        [I am|we are|you are] in {repo} on [branch |]{branch}
        [take|open|use|look at|go to] [the {branch} branch|branch {branch}] of {repo}
        [I have|we have|here is|there is] [the repository|the repo|the project] {repo} with a branch {branch}
    """,
    "repo.given": """
        [the repository|the project|its name|the repository's name] is {repo}
        [I work|we work|I am working|the team works] on [the repository|the repo|the project|] {repo}
        [take|open|use|look at|go to|I mean] [the repository|the repo|the {repo} repo,] {repo}
        [I have|we have|here is|there is|it is about] [the repository|the repo|the project] {repo}
    """,
    "show.ask": """
        [what|which] is [the|its] {field}?
        [what|which] {field} [is set|is it|is used|does it have|does it use|is given]?
        [read|show|open|print|give me|tell me] [the file {file}|{file}|the {field}|its {field}].
        [I need|I want|find|check|look up] [the|its] {field}.
        what does {file} say?
    """,
    "show.tele": """
        {repo} {branch} {field}
        {field} {repo} {branch}
        {repo} {branch} {file}
        {branch}:{file} {repo}
        {field} of {repo}, {branch}
    """,
    "show_main.tele": """
        {repo} {field}
        {field} {repo} repo
        {repo} repo {file}
    """,
    "log.ask": """
        what is the [last|latest|newest|most recent] [commit|change]?
        [show|read|print|give me|tell me|find|I need] the [last|latest|newest|most recent] [commit|change].
        what was [done|changed|committed] last?
    """,
    "log.tele": """
        [last|latest|newest] commit {repo}
        {repo} [last|latest|newest] commit
        {repo} log, last commit
    """,
    "log_author.ask": """
        who [made|wrote|did] the [last|latest|newest|most recent] [commit|change]?
        [show|give me|tell me|find|I need|name] the author of the [last|latest|newest|most recent] [commit|change].
        who was the last to [commit|change it|work on it]?
    """,
    "log_author.tele": """
        author [last|latest|newest] commit {repo}
        {repo} [last|latest|newest] commit author
    """,
    "branches.ask": """
        [what|which] branches [are there|does it have|exist|do you see|can you find|are in it]?
        [list|show|name|print|give me|tell me|find] [the branches|all branches|its branches|all its branches].
        what are its branches?
    """,
    "branches.tele": """
        branches {repo}
        {repo} branches
        branches of {repo}
        list branches {repo}
    """,
}
# Kinds whose `given` is another kind's.
SHARED_GIVEN = {
    "count": "table.given",
    "more": "table.given",
    "less": "table.given",
    "most": "table.given",
    "least": "table.given",
    "sum": "table.given",
    "show_main": "repo.given",
    "log": "repo.given",
    "log_author": "repo.given",
    "branches": "repo.given",
}
SHARED_ASK = {"show_main": "show.ask"}
