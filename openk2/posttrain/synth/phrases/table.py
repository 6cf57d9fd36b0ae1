"""How people ask a small table. Slots: row (a name in it), col and col2 (columns), n (a number), table (its name).

`cell_<column>` holds what people say for one column only ("how old is Ada").
"""

TABLES = {
    "cell.np": """
        the {col} of {row}
        the {col} of {row}
        {row}'s {col}
        the {col} [for|that belongs to|listed for|given for|stored for|next to] {row}
        the {col} [value|entry|field] [of|for] {row}
        the {col} in the row [of|for] {row}
    """,
    "cell.imp": """
        [look up|find|get|check|read|fetch|show|show me|give me|list|print|tell me] the {col} [of|for] {row}
        [look up|find|get|check|read|fetch|show me|give me|tell me] {row}'s {col}
        [look in|search|check|use|query|ask|go through] the [table|{table} table|table {table}] [and tell me|and find|and get|and give me|for] the {col} [of|for] {row}
        [look up|find|search for|look for|go to] {row} [and give|and show|and tell|and read] me the {col}
    """,
    "cell.q": """
        what is the {col} [of|for] {row}
        what is {row}'s {col}
        [what|which] {col} does {row} have
        [what|which] {col} [is listed|is given|is stored|is written|is there|do you have|do we have|stands] for {row}
        what does the table [say|give|list|show|have] [as the|for the|about the] {col} of {row}
    """,
    "cell.emb": """
        what the {col} [of|for] {row} is
        what {row}'s {col} is
        [what|which] {col} {row} has
        [what|which] {col} is [listed|given|stored|written] for {row}
    """,
    "cell.full": """
        {row}: [what {col}|which {col}|what is the {col}|{col}]?
        [take|I mean|I am looking at|it is about|look at|we talk about] {row}. [what is the {col}|which {col} is it|what {col} is given|give me the {col}]?
        {col} [of|for] {row}[?|, please.|.]
        [in|from|by|according to] the [{table} table|table], [what is|give me|tell me] the {col} of {row}[?|.]
    """,
    "cell.again": """
        {row}
        the {col} of {row}
        {row}'s {col}
    """,
    "count.np": """
        the [number|count|total number] of [rows|entries|lines|records|{table}] [in the table|in the table {table}|there]
        the [size|length] of the [table|table {table}|{table} table]
        the [number|count|total number] of {table}
    """,
    "count.imp": """
        count [the|all|all the] [rows|entries|lines|records|{table}] [in the table|in the table {table}|in the {table} table|in it|]
        [find out|tell me|say|check|show me] how many [rows|entries|lines|records|{table}] [there are|are in the table|the table has|the {table} table has]
    """,
    "count.q": """
        how many [rows|entries|lines|records|{table}] [are there|are in the table|does the table have|does the table {table} have|do we have|do you have|are listed|are stored|can you find|do you see]
        how [long|big|large] is the [table|{table} table|table {table}]
        how many {table} [are there in total|are in it|exist|are known]
    """,
    "count.emb": """
        how many [rows|entries|lines|records|{table}] [there are|are in the table|the table has|we have|are listed]
        how [long|big|large] the [table|{table} table] is
    """,
    "more.np": """
        the [number|count] of {table} with {col} [over|above|more than|greater than|larger than|higher than] {n}
        the [number|count] of [rows|entries] where {col} is [over|above|more than|greater than|larger than] {n}
    """,
    "more.imp": """
        count [the|all|all the] [{table}|rows|entries|{table} in the table] [with|that have|whose|where] {col} [is |][over|above|more than|greater than|larger than|higher than] {n}
    """,
    "more.q": """
        how many [{table}|rows|entries|of the {table}] have [a |]{col} [over|above|more than|greater than|larger than|higher than|of more than] {n}
        for how many [{table}|rows|entries] is the {col} [over|above|more than|greater than|larger than|higher than] {n}
        how many {table} are there with [a |]{col} [over|above|more than|greater than|of more than] {n}
        in how many [rows|entries] is {col} [over|above|more than|greater than] {n}
    """,
    "more.emb": """
        how many [{table}|rows|entries] have [a |]{col} [over|above|more than|greater than|larger than] {n}
        how many {table} there are with [a |]{col} [over|above|more than] {n}
    """,
    "less.np": """
        the [number|count] of {table} with {col} [under|below|less than|smaller than|lower than] {n}
        the [number|count] of [rows|entries] where {col} is [under|below|less than|smaller than] {n}
    """,
    "less.imp": """
        count [the|all|all the] [{table}|rows|entries|{table} in the table] [with|that have|whose|where] {col} [is |][under|below|less than|smaller than|lower than] {n}
    """,
    "less.q": """
        how many [{table}|rows|entries|of the {table}] have [a |]{col} [under|below|less than|smaller than|lower than|of less than] {n}
        for how many [{table}|rows|entries] is the {col} [under|below|less than|smaller than|lower than] {n}
        how many {table} are there with [a |]{col} [under|below|less than|of less than] {n}
    """,
    "less.emb": """
        how many [{table}|rows|entries] have [a |]{col} [under|below|less than|smaller than] {n}
        how many {table} there are with [a |]{col} [under|below|less than] {n}
    """,
    "most.np": """
        the [highest|largest|greatest|biggest|top|maximum] {col}
        the [highest|largest|greatest|biggest|top|maximum] {col} [in the table|in it|of all|of all {table}|of the {table}|among the {table}|there is]
        the maximum of {col}
    """,
    "most.imp": """
        [find|get|look up|work out|check|show me|give me] the [highest|largest|greatest|biggest|maximum] {col} [in the table|of all|of all {table}|]
    """,
    "most.q": """
        what is the [highest|largest|greatest|biggest|top|maximum] {col} [in the table|of all|of all {table}|among the {table}|there|]
        how [high|large|big] is the [highest|largest|greatest|maximum] {col}
        how [high|large|big] does the {col} [get|go]
    """,
    "most.emb": """
        what the [highest|largest|greatest|biggest|maximum] {col} [in the table|of all|of all {table}|] is
        how [high|large|big] the [highest|largest|greatest] {col} is
    """,
    "least.np": """
        the [lowest|smallest|least|minimum] {col}
        the [lowest|smallest|least|minimum] {col} [in the table|in it|of all|of all {table}|of the {table}|among the {table}|there is]
        the minimum of {col}
    """,
    "least.imp": """
        [find|get|look up|work out|check|show me|give me] the [lowest|smallest|least|minimum] {col} [in the table|of all|of all {table}|]
    """,
    "least.q": """
        what is the [lowest|smallest|least|minimum] {col} [in the table|of all|of all {table}|among the {table}|there|]
        how [low|small] is the [lowest|smallest|minimum] {col}
        how [low|small] does the {col} [get|go]
    """,
    "least.emb": """
        what the [lowest|smallest|minimum] {col} [in the table|of all|of all {table}|] is
        how [low|small] the [lowest|smallest] {col} is
    """,
    "sum.np": """
        the [sum|total] of [all |the |all the |]{col} [values|entries|numbers|]
        the total {col} [of all {table}|in the table|]
        all {col} values added up
    """,
    "sum.imp": """
        [add up|sum|sum up|total] [all |the |all the ]{col} [values|entries|numbers]
        [find|compute|calculate|work out|get] the [sum|total] of [all |the ]{col} [values|numbers|entries]
    """,
    "sum.q": """
        what is the [sum|total] of [all |the |]{col} [values|entries|numbers]
        what do all {col} values [add up to|make together|come to]
        how much is [the total {col}|all the {col} together]
    """,
    "sum.emb": """
        what the [sum|total] of [all |the ]{col} [values|numbers] is
        what all {col} values add up to
    """,
    "cell_age.full": """
        how old is {row}[?|, please?| now?| according to the table?]
        [tell me|do you know|I want to know|can you say] how old {row} is[.|?|, please.]
        [what age does {row} have|what age is {row}|is {row} old, and how old]?
        {row}: how old?
    """,
    "cell_city.full": """
        where does {row} live[?|, please?| now?| according to the table?]
        [tell me|do you know|I want to know|can you say] where {row} lives[.|?|, please.]
        [in |]which city [does {row} live|is {row}][ in|]?
        where is {row} from?
    """,
    "cell_price.full": """
        how much [is|are|do I pay for] [the |]{row}[?|, please?| now?| in the table?]
        what [does|do|will|would] [the |]{row} cost[?| me?]
        [tell me|do you know|I want to know] [what|how much] [the |]{row} [costs|cost][.|?|, please.]
        [what do I pay|what must I pay] for {row}?
        I want to buy {row}. [how much is it|what does it cost|what do I pay]?
    """,
    "cell_stock.full": """
        how many {row} [are in stock|do we have|are left|are there|do you have][?| now?| in stock?]
        [tell me|do you know|I want to know|check] how many {row} [are left|we have|are in stock|there are][.|?]
        do we have {row}, and how many?
    """,
    "cell_pages.full": """
        how many pages [does|has] [the book |]{row} [have|got]?
        how long is the book {row} in pages?
        [tell me|do you know|I want to know] how many pages [the book |]{row} has[.|?]
        [the book |]{row}: how many pages?
    """,
    "cell_year.full": """
        when was [the book |]{row} [written|made|printed]?
        [in |from |]which year is [the book |]{row}?
        [tell me|do you know|I want to know] when [the book |]{row} was [written|made|printed][.|?]
        from when is [the book |]{row}?
    """,
    "cell_height.full": """
        how [tall|high|big] is {row}[?| in the table?| now?]
        [tell me|do you know|I want to know] how [tall|big] {row} is[.|?]
        {row}: how tall?
    """,
    "cell_weight.full": """
        how heavy is {row}[?| in the table?| now?]
        how much does {row} weigh?
        [tell me|do you know|I want to know] how [heavy {row} is|much {row} weighs][.|?]
    """,
    "cell_points.full": """
        how many points [does {row} have|has {row} got|did {row} get|did {row} make|did {row} win]?
        [tell me|do you know|I want to know] how many points {row} [has|got|made|won][.|?]
        {row}: how many points?
    """,
}
