"""How people ask for conversions. Slots: v (the value), u (its unit), w (the unit wanted)."""

TABLES = {
    "convert.np": """
        {v} {u} in {w}
        {v} {u} in {w}
        {v} {u} [to|as|into|converted to|expressed in|given in] {w}
        the [value|amount|number] of {v} {u} in {w}
        the [number of|amount of] {w} in {v} {u}
        the {w} in {v} {u}
        [the same as|the same value as] {v} {u} [but |]in {w}
    """,
    "convert.imp": """
        [convert|change|turn|translate|switch|bring|transform] {v} {u} [to|into|in] {w}
        [write|express|give|say|show|put] {v} {u} [in|as] {w}
        [find|compute|calculate|work out|get] {v} {u} in {w}
        [find|compute|calculate|work out|get] [how many {w}|the number of {w}] [are in|in|make] {v} {u}
        [take|start with] {v} {u} and [convert|change|turn] [it |them |that |]to {w}
        [go|change|convert] from {v} {u} to {w}
    """,
    "convert.q": """
        [what is|what's|how much is|what are] {v} {u} in {w}
        how many {w} [are|is|are in|are there in|make|make up|do I have in|do I get from|fit in] {v} {u}
        how many {w} [equal|correspond to|are equal to|are the same as] {v} {u}
        what [is|are] {v} {u} [converted to|expressed in|given in|when converted to] {w}
        what do I get [if I|when I] [convert|change|turn] {v} {u} [to|into] {w}
        [in|if I use|if we use] {w}, [how much|what] [is|are] {v} {u}
        {v} {u} [is|are|makes|make|equals|equal] how many {w}
    """,
    "convert.emb": """
        [what|how much] {v} {u} [is|are] in {w}
        how many {w} [{v} {u} is|{v} {u} are|are in {v} {u}|there are in {v} {u}|make {v} {u}|equal {v} {u}]
        what {v} {u} [is|are] [converted to|expressed in] {w}
        how to [write|express|say] {v} {u} in {w}
    """,
    "convert.full": """
        I have {v} {u} and [need|want] {w}. [how many|how much|what] [is it|is that|are they]?
        [my|the|this|our] [recipe|label|sign|map|book|order|plan|letter] says {v} {u}. [how much|what|how many] is that in {w}?
        [it is|it says|it shows|I read|I measured|I see|I got] {v} {u}[. in {w}, please.|, but I need {w}.|. and in {w}?|; what is it in {w}?]
        {v} {u}[:|,] [how many {w}|what in {w}|in {w}|to {w}]?
        {v} {u} [=|= ?|is|are|->|to] {w}?
        [not|I do not want|not in] {u} but {w}: [what is|convert|give me] {v} {u}?
        [I think|I work|I count] in {w}. [what is|how much is] {v} {u}[ for me|]?
        {name} [says|writes|measured|needs] {v} {u}. [how much is that|what is that|how many is that] in {w}?
    """,
    "convert.again": """
        {v} {u} in {w}
        {v} {u} to {w}
    """,
}
