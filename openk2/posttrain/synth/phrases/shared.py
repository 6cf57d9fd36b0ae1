"""Frames that carry any request: openers, politeness, context, closers.

A kind of task gives its `core` in up to four grammatical forms: `q` a direct
question, `imp` an imperative, `emb` an embedded question, `np` a noun phrase;
`full` lines need no frame of this page but its openers and closers.
"""

TABLES = {
    "frame.q": """
        <core>?
        <core>?
        <core>?
        <core>?
        <core>?
        <core>?
        <core>, please?
        [please|please tell me|tell me|please answer|my question is]: <core>?
        [ok|so|and|well|then|now] <core>?
        <core>[, do you know|, can you tell me]?
        <open> <core>?
        <context> <core>?
        <core>? <close>
    """,
    "frame.imp": """
        <core>.
        <core>.
        <core>.
        <core>.
        <core>.
        [please|please|just|now|ok,|so,|next,] <core>.
        <core>, [please|please|thanks|will you|if you can].
        [can|could|would|will] you <core>?
        [can|could] you [please|just] <core>?
        I [want|need|would like] you to <core>.
        I [need to|have to|want to|must] <core>.
        <open> <core>.
        <context> <core>.
        <core>. <close>
    """,
    "frame.emb": """
        [please|now|] [tell me|let me know|find out|show me|check|say] <core>.
        [please|now|] [tell me|let me know|find out|show me|check|say] <core>.
        [can|could|would|will] you [please|] [tell me|find out|check|show me|say] <core>?
        [do you know|do you remember|can you see] <core>?
        I [want|need|would like] to [know|find out|see|check] <core>.
        I [wonder|forgot|do not know|am not sure] <core>.
        <open> [tell me|do you know|please tell me] <core>[?|.]
        <context> [tell me|please tell me] <core>.
        [tell me|please say] <core>. <close>
    """,
    "frame.np": """
        what is <core>?
        what is <core>?
        what is <core>?
        [what's|what was|what will be] <core>?
        <core>?
        <core>
        <core>, [please|please|thanks|if you can].
        [give me|find|find me|get me|show me|tell me|work out|check] <core>.
        [please|now|just] [give me|find|get me|show me|tell me|check] <core>.
        [can|could|would|will] you [please|] [give me|find|show me|tell me|check] <core>?
        [how about|what about|and] <core>?
        I [need|want|would like|must know] <core>.
        I [need|want] to [know|find|see|check] <core>.
        can [I|we] have <core>[, please|]?
        <core>: what is it?
        <open> [what is|what's|] <core>?
        <context> [what is <core>?|give me <core>.|I need <core>.]
        what is <core>? <close>
    """,
    "frame.full": """
        <core>
        <core>
        <core>
        <core>
        <core>
        <open> <core>
        <context> <core>
        <core> <close>
    """,
    # The elliptical second turn: the first one said what is to be done.
    "frame.again": """
        [and|and now|now|then|next|what about|how about|ok, and|and what about|also] <core>?
        [the same|do the same|the same question|again, but] [for|with] <core>[.|, please.]
        [and|now|next:|then|also] <core>[, please.|.|?]
        [thanks.|thank you.|good.|ok.] [and|now|what about|how about|then] <core>?
    """,
    "open": """
        [hi|hello|hey|hi there|good morning|good evening|good day|hello openk2][,|.|!]
        [ok|okay|so|well|right|now|say|look|sorry|excuse me|please],
        [one |a quick |a small |another |]question[:|.]
        [can you help|can you help me|please help me|help me out][?|.]
        [next|first|quick one|one more thing|something else]:
    """,
    "open_again": """
        [and|and now|now|then|next,|next:|also,|ok, now|good, now|thanks, now]
        [thanks.|thank you.|good.|ok.|perfect.|I see.|all right.]
        [one more thing|one more|another one|something else|another question][:|.]
    """,
    "asker": """
        [my|our|the|a] [teacher|boss|friend|sister|brother|mother|father|neighbour|son|daughter|wife|husband|team|group]
        [someone|somebody|a man|a woman|a child|a customer|a guest] [here|at work|at school|at home|on the phone|]
    """,
    "context": """
        <asker> [asked me this|wants to know|needs this][:|.]
        I am [checking|writing|planning|preparing|reading] <thing_of>[.|, so|:]
        [for|about|this is for|it is for|I need this for] <thing_of>[:|,]
        I am [at work|at home|at school|in a hurry|on the phone|in a meeting][.|, so]
        [before I go|before lunch|just to be sure|when you can],
    """,
    "thing_of": """
        [my|our|a|the] [homework|bill|report|letter|trip|list|plan|party|test|lesson|game|project|shop|garden|house|holiday|order]
    """,
    "close": """
        [thanks|thank you|thanks a lot|many thanks|thank you very much][.|!]
        I need it [today|now|soon|for work|for school|for a friend].
        [be exact|be quick|no rush|take your time|keep it short].
        it is for <thing_of>.
        [that is all|that is my question|that is what I need].
    """,
}
