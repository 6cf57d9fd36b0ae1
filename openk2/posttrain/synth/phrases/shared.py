"""Frames that carry any request: openers, politeness, context, closers.

A kind of task gives its `core` in up to four grammatical forms: `q` a direct
question, `imp` an imperative, `emb` an embedded question, `np` a noun phrase;
`full` lines need no frame of this page but its openers and closers.
"""

TABLES = {
    "frame.q": """
        <core>?
        <core>?
        <core>, please?
        <open> <core>?
        <open> <core>?
        <context> <core>?
        <core>? <close>
        <open> <core>? <close>
        <core>[, do you know|, any idea|, can you tell me|, roughly or exactly]?
        [tell me|please tell me|please say|can you say|answer this|please answer|I want to know]: <core>?
        [my|the|our] question is[:| this:] <core>?
        if [I may ask|you know|you do not mind|it is no trouble], <core>?
        [ok|so|and|well|then|now|hmm] <core>?
        <core>? <context_after>
        <open> <context> <core>?
        <core>? [<asker> wants to know.|<asker> asked me.|<asker> would like to know.]
    """,
    "frame.imp": """
        <core>.
        <core>.
        [please|kindly|just|now|quickly|ok,|so,|first,|next,] <core>.
        <core>, [please|thanks|will you|would you|if you can|if possible|as usual|quickly].
        [can|could|would|will] you <core>?
        [can|could|would|will] you [please|kindly|quickly|just|maybe|also] <core>?
        [can|could|would] you <core> [for me|please|today|right now|for us|again]?
        I [want|need|would like|'d like] you to <core>.
        [help me|help me to|please help me|can you help me|could you help me to] <core>.
        [let us|let's|go ahead and|try to|go and|be kind and|be so kind and] <core>.
        I [need to|have to|want to|must|am trying to|would like to] <core>.
        [are you able to|is it possible to|may I ask you to|do you mind if I ask you to] <core>?
        [your task|my request|the task|a request|one request|to do]: <core>.
        it would be [nice|good|great|helpful] if you could <core>.
        <open> <core>.
        <open> [can|could] you <core>?
        <context> <core>.
        <context> [please|can you|could you] <core>.
        <core>. <context_after>
        <context> <core>. <close>
        <core>. <close>
        <open> [please|] <core>. <close>
    """,
    "frame.emb": """
        [please|kindly|just|now|] [tell me|let me know|find out|show me|check|work out|say] <core>.
        [can|could|would|will] you [please|] [tell me|find out|work out|check|show me|let me know|say] <core>?
        [do you know|do you happen to know|do you remember|can you see|any idea|have you any idea] <core>?
        I [want|need|would like|'d like|have|am trying] to [know|find out|learn|understand|see|check] <core>.
        I [wonder|was wondering|am wondering|ask myself|forgot|do not know|cannot remember|am not sure|am curious] <core>.
        [help me|please help me|I need help to|can you help me] [find out|see|work out|check] <core>.
        [the question is|my question is|I have to say|I must know|nobody knows|it is about|here is my question:] <core>.
        <asker> [asked me|wants to know|needs to know|asks|would like to know] <core>.
        <open> [tell me|do you know|I need to know|please tell me|can you tell me] <core>[?|.]
        <context> [tell me|please tell me|can you tell me|I need to know|let me know] <core>.
        [tell me|please say|do you know|can you tell me] <core>? <close>
        <core>, [do you know|can you tell me|that is my question|I wonder|please]?
        [remind me|be so kind and tell me|go ahead and tell me|I hope you can tell me] <core>.
    """,
    "frame.np": """
        what is <core>?
        what is <core>?
        [what's|what was|what would be|what will be|what could be] <core>?
        <core>?
        <core>
        <core>, [please|thanks|quickly|if you can|if possible|can you].
        [give me|find|find me|get|get me|show me|tell me|work out|check|look up|say] <core>.
        [please|kindly|now|just|so,] [give me|find|get me|show me|tell me|work out|check|say] <core>.
        [can|could|would|will] you [please|] [give me|find|get|show me|tell me|work out|check|look up] <core>?
        [how about|what about|and] <core>?
        I [need|want|would like|'d like|am looking for|am after|must know|have to know|forgot] <core>.
        I [need|want|would like|have|'d like] to [know|find|get|see|check|work out] <core>.
        [can|could|may] I [have|get|see|know] <core>[, please|]?
        [let me have|let me see|let me know|help me find|help me with|help me get] <core>.
        [do you know|do you have|can you see] <core>?
        [the question is|my question is|here is the question|question]: what is <core>?
        [needed|wanted|request|to find|my question|task]: <core>.
        <core>[: what is it|, what is it|: do you know it|: can you find it]?
        <open> [what is|what's|] <core>?
        <open> [give me|tell me|I need|I want] <core>.
        <context> [what is <core>?|give me <core>.|I need <core>.|please find <core>.]
        [what is|tell me|give me|I need] <core>? <close>
        <asker> [needs|wants|asked for|is asking for|would like] <core>.
    """,
    "frame.full": """
        <core>
        <core>
        <core>
        <open> <core>
        <context> <core>
        <core> <close>
    """,
    # The elliptical second turn: the first one said what is to be done.
    "frame.again": """
        [and|and now|now|then|next|what about|how about|ok, and|thanks, and|and what about|good, and|also] <core>?
        [the same|the same thing|do the same|do that|same question|the same question|again, but] [for|with] <core>[.|, please.]
        [and|now|next:|then|also] <core>[, please.|.|?]
        [thanks.|thank you.|great.|good.|ok.|nice.|perfect.] [and|now|what about|how about|then] <core>?
        [can you|could you|please|now] [do|try|check] <core>[ too| as well| next| now|][.|, please.]
    """,
    "open": """
        [hi|hello|hey|hi there|hello there|good morning|good evening|good day|hi openk2|hello openk2|hey openk2][,|.|!]
        [ok|okay|so|well|right|alright|hmm|now|say|listen|look|sorry|excuse me|please],
        [a |one |a quick |one quick |a small |one small |another |my first |an easy |]question[:|.]
        [I have|here is|there is|I have got] [a question|a quick question|a small question|a task|something][:|.]
        [can you help|can you help me|could you help me|help|please help|help me out][?|.]
        [next|first|quick one|one thing|one more thing|something else|just one thing|a favour|quickly]:
        [I hope you are well|nice to meet you|I need help|I need your help|I am back|it is me again].
    """,
    "open_again": """
        [and|and now|now|then|next,|next:|also,|ok, now|good, now|thanks, now|thank you, and]
        [thanks.|thank you.|great.|good.|ok.|nice.|perfect.|I see.|all right.|very good.|that helps.]
        [one more thing|one more|another one|something else|another question|one last thing|a second question][:|.]
    """,
    "asker": """
        [my|our|the|a] [teacher|boss|friend|sister|brother|mother|father|neighbour|son|daughter|wife|husband|team|group]
        [someone|somebody|a man|a woman|a child|a customer|a guest] [here|at work|at school|at home|on the phone|]
    """,
    "context": """
        <asker> [asked me this|wants to know|needs this|is asking|sent me this|asked for help][:|.]
        I am [doing|checking|writing|planning|preparing|reading|looking at|working on] <thing_of>[.|, so|:]
        [for|about|this is for|it is for|I ask for|I need this for] <thing_of>[:|,]
        I am [at work|at home|at school|on the bus|in a shop|in a hurry|on the phone|in a meeting|lost|stuck][.|, so]
        [before I go|before lunch|while I wait|just to be sure|to be safe|to be clear|if you have a minute|when you can],
        I [tried it|lost my phone|have no paper|cannot do it|cannot find it|am not good at this|did not sleep][.|, so]
    """,
    "context_after": """
        <asker> [asked me this|wants to know|needs this|is asking].
        I am [doing|checking|writing|planning|preparing|working on] <thing_of>.
        [this is|it is] for <thing_of>.
        I am [at work|at home|at school|on the bus|in a shop|on the phone|in a meeting|lost|stuck].
    """,
    "thing_of": """
        [my|our|a|the] [homework|bill|report|letter|trip|list|plan|party|test|lesson|game|project|shop|garden|house|holiday|order]
    """,
    "close": """
        [thanks|thank you|thanks a lot|many thanks|thank you very much|thanks in advance|cheers][.|!]
        I need it [today|now|soon|for work|for school|for my list|for a friend|before lunch|this week].
        [just the answer|a short answer is fine|be exact|be quick|please be quick|no rush|take your time|keep it short].
        [I forgot|I am not sure|I am in a hurry|I cannot do it in my head|I have no idea|I got lost|I always forget].
        it is for <thing_of>.
        [that is all|that is my question|that is what I need|you would help me a lot|I hope you can help].
    """,
}
