"""How people ask for arithmetic. Slots: numbers a, b, c; thing (a plural noun) and name in stories."""

TABLES = {
    "add.np": """
        {a} [plus|+|and] {b}
        {a} [plus|+] {b}
        {a}+{b}
        the [sum|total] of {a} and {b}
        the sum {a} [+|plus] {b}
        [the result of|the answer to|the value of] {a} [plus|+] {b}
        {a} and {b} [together|added|added up|added together|in total|taken together]
        {a} [increased by|with] {b} [added|more|]
        what you get when you add {a} and {b}
    """,
    "add.imp": """
        [add|add up|sum|sum up|total|put together] {a} and {b}
        add {a} [to|and|with] {b}
        [compute|calculate|work out|solve|find|evaluate|do] {a} [plus|+] {b}
        [compute|calculate|work out|find|get] the [sum|total] of {a} and {b}
        [start with|take|begin with] {a} and add {b}
        add the [numbers|values|amounts] {a} and {b}
    """,
    "add.q": """
        [what is|what's|how much is|what does] {a} [plus|+] {b}
        how much [is|are|do] {a} and {b} [together|in total|make|make together|give]
        what do {a} and {b} [make|give|add up to|sum to|come to|make together]
        what [do I|do you|do we] get [if I|when I|if you|when you|by] add {a} and {b}
        what is [the sum|the total] of {a} and {b}
    """,
    "add.emb": """
        [what|how much] {a} [plus|+] {b} [is|makes|gives|comes to|equals]
        [what|how much] {a} and {b} [make|give|come to|add up to|are together]
        what the [sum|total] of {a} and {b} is
        what I get [if I|when I] add {a} and {b}
    """,
    "add.full": """
        I have {a} {thing} and [get|buy|find|make|win] {b} more. how many [{thing} |][do I have|is that|are there|is it] [now|in total|together|]?
        {name} has {a} {thing} and I have {b}. how many [{thing} |][do we have|are there|is that] [together|in total|]?
        there are {a} {thing} here and {b} there. how many [are there|is that|in total|together]?
        [I paid|I spent|it cost] {a} [yesterday|first|on monday] and {b} [today|later|on friday]. [what is the total|how much is that|how much in total]?
        {a} + {b} [=|= ?|equals?|=?]
        {a} {thing} plus {b} {thing} is how many?
    """,
    "sub.np": """
        {a} [minus|-|less] {b}
        {a} [minus|-] {b}
        the difference [between|of] {a} and {b}
        [the result of|the answer to|the value of] {a} [minus|-] {b}
        {a} [reduced by|decreased by|with] {b} [taken away|removed|]
        what is left [of|from] {a} [after|without|minus] {b}
        {b} [taken from|subtracted from|taken away from|less than] {a}
    """,
    "sub.imp": """
        [subtract|take|take away|remove|deduct] {b} from {a}
        [compute|calculate|work out|solve|find|evaluate|do] {a} [minus|-] {b}
        [compute|calculate|work out|find|get] the difference [between|of] {a} and {b}
        [start with|take|begin with] {a} and [subtract|take away|remove] {b}
        reduce {a} by {b}
    """,
    "sub.q": """
        [what is|what's|how much is] {a} [minus|-] {b}
        [what|how much] is left [of|from] {a} [if I|when I|if you|when you] [take away|remove|subtract|spend|lose] {b}
        how much [more|bigger|larger|greater] is {a} than {b}
        what is the difference between {a} and {b}
        [what|how much] remains of {a} [after|without] {b}
        what do [I|you|we] get when [I|you|we] [subtract|take] {b} from {a}
    """,
    "sub.emb": """
        [what|how much] {a} [minus|-] {b} [is|makes|gives|comes to|equals]
        [what|how much] is left [of|from] {a} [after|without] {b}
        what the difference between {a} and {b} is
        how much [more|larger|bigger] {a} is than {b}
    """,
    "sub.full": """
        I [have|had] {a} {thing} and [lose|sell|eat|give away|use|lost|sold] {b}. how many [{thing} |][are left|do I have left|remain|do I still have|do I have now]?
        {name} had {a} {thing} and [gave|sold|lent] me {b}. how many [{thing} |][does {name} have now|are left|remain]?
        of {a} {thing}, {b} are [gone|broken|lost|sold]. how many [are left|remain|do we still have]?
        [it costs|the price is|the bill is] {a} and I [have|pay|paid] {b}. how much is [missing|left|still to pay]?
        {a} - {b} [=|= ?|equals?|=?]
    """,
    "mul.np": """
        {a} [times|*|x|multiplied by] {b}
        {a} [times|*] {b}
        {a}*{b}
        {a}x{b}
        the product of {a} and {b}
        the product {a} [times|*] {b}
        [the result of|the answer to|the value of] {a} [times|*|multiplied by] {b}
        {a} and {b} multiplied
        {a} [groups|boxes|sets|lots|rows] of {b}
    """,
    "mul.imp": """
        multiply {a} [by|and|with|times] {b}
        [compute|calculate|work out|solve|find|evaluate|do] {a} [times|*|x|multiplied by] {b}
        [compute|calculate|work out|find|get] the product of {a} and {b}
        [start with|take|begin with] {a} and multiply [it |]by {b}
        [take|count] {a} times {b}
        multiply the [numbers|values] {a} and {b}
    """,
    "mul.q": """
        [what is|what's|how much is] {a} [times|*|x|multiplied by] {b}
        what do {a} and {b} [make|give|come to] [multiplied|when multiplied|if multiplied]
        what is the product of {a} and {b}
        what do [I|you|we] get [if I|when I|if you|when you] multiply {a} [by|and|with] {b}
        how many [{thing} |]are {a} times {b} {thing}
    """,
    "mul.emb": """
        [what|how much] {a} [times|*|multiplied by] {b} [is|makes|gives|comes to|equals]
        what the product of {a} and {b} is
        what I get [if I|when I] multiply {a} [by|and|with] {b}
    """,
    "mul.full": """
        there are {a} [boxes|bags|rows|tables|shelves] with {b} {thing} [each|in each]. how many {thing} [is that|are there|in total]?
        I [buy|order|need|sell] {a} {thing} at {b} [euros|dollars|pounds] each. [how much is that|what do I pay|what is the total|what is the price]?
        one of the {thing} costs {a} [euros|dollars|pounds]. [how much are|what do I pay for|how much do I pay for] {b}?
        {name} [works|runs|reads|walks] {a} [minutes|hours|pages] a day. [how much|how many] is that in {b} days?
        {a} * {b} [=|= ?|equals?|=?]
    """,
    "div.np": """
        {a} [divided by|/|over] {b}
        {a} [divided by|/] {b}
        the quotient of {a} and {b}
        [the result of|the answer to|the value of] {a} [divided by|/] {b}
        {a} [split|shared|divided] [into {b} parts|among {b} people|by {b}]
    """,
    "div.imp": """
        divide {a} by {b}
        [compute|calculate|work out|solve|find|evaluate|do] {a} [divided by|/|over] {b}
        [split|share|divide] {a} [into {b} equal parts|into {b} parts|among {b} people|between {b} friends]
        [take|start with|begin with] {a} and divide [it |]by {b}
        [compute|calculate|work out|find|get] the quotient of {a} and {b}
    """,
    "div.q": """
        [what is|what's|how much is] {a} [divided by|/|over] {b}
        how [often|many times] does {b} [go into|fit into] {a}
        what do [I|you|we] get [if I|when I|if you|when you] divide {a} by {b}
        how much does each get if {b} people share {a}
    """,
    "div.emb": """
        [what|how much] {a} [divided by|/|over] {b} [is|makes|gives|comes to|equals]
        how [often|many times] {b} [goes into|fits into] {a}
        what I get [if I|when I] divide {a} by {b}
    """,
    "div.full": """
        {b} [friends|people|children] share {a} {thing}. how many [{thing} |]does each [one |]get?
        I [put|pack|sort] {a} {thing} into {b} [boxes|bags|rows]. how many [are|go] in each?
        {name} reads {a} pages in {b} days. how many [pages |]is that a day?
        {a} / {b} [=|= ?|equals?|=?]
    """,
    # Two calls in one turn.
    "two_sums.np": """
        {a} [plus|+] {b} and {c} [plus|+] {d}
        the [sum|total] of {a} and {b} and of {c} and {d}
    """,
    "two_sums.imp": """
        [compute|calculate|work out|find|solve] [both |]{a} [plus|+] {b} and {c} [plus|+] {d}
        add {a} and {b}, [and also|then also|and separately] add {c} and {d}
    """,
    "two_sums.q": """
        [what is|how much is|what are] {a} [plus|+] {b} and {c} [plus|+] {d}
    """,
    "two_sums.emb": """
        what {a} [plus|+] {b} and {c} [plus|+] {d} are
    """,
}
