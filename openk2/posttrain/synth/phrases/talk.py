"""Small talk and questions that need no tool; `plain.py` says what is answered."""

TABLES = {
    "greet.full": """
        [hi|hello|hey|hi there|hello there|good morning|good evening|good day][!|.|,|] [how are you|how are you today|how is it going|nice to meet you|I am back||||][?|.|!|]
        [hi|hello|hey|good morning] openk2[!|.|]
    """,
    "who.full": """
        [who|what] are you?
        [hi|hello|hey|ok|so][,|.] [who|what] are you?
        [what is|what's|tell me|can you tell me|may I know|do you have|say|I want to know] your name[?|.]
        [tell me|say|please say|can you say|I want to know|I wonder] [who|what] you are[?|.]
        [please |can you |could you |]introduce yourself[.|?|, please.]
        [who|what] am I [talking|speaking|writing] to?
        are you [a person|a human|a robot|a model|a machine|real|a man or a machine]?
        what [kind of|sort of] [thing|model|machine|helper] are you?
        what [do I|should I|can I] call you?
        [which|what] model [is this|are you|am I talking to]?
    """,
    "tools.full": """
        [which|what] tools [can you use|do you have|do you know|are there|are on offer|can I use here|have you got]?
        [tell me|say|show me|list|name|give me] [your tools|the tools|which tools you have|which tools you can use|what tools there are|all tools you have][.|?|, please.]
        [what|which things] can you do [for me|here|today|with your tools|]?
        [how|with what|in what way] can you help [me|here|me today|]?
        [do you have|have you got|can you use] [any tools|tools]?
        [which|what] tools are [there|here|yours]?
        what are your tools?
        [can you|please|could you] [list|name|show] your tools[?|.]
    """,
    "thank.full": """
        [thanks|thank you|thanks a lot|many thanks|thank you very much|great, thanks|ok, thanks|perfect, thanks|good, thank you|cheers][.|!|]
        [thanks|thank you] [for your help|for that|for the help|for the answer|openk2|again][.|!|]
        [great|perfect|nice|good|very good|well done|that helps][.|!|,] [thanks|thank you|thanks a lot|that is all|that helps|I am happy][.|!|]
        [that is|that's] [great|perfect|good|nice|very helpful|very kind|right|what I need][.|!|, thanks.|, thank you.]
    """,
    "bye.full": """
        [bye|goodbye|good bye|good night|see you|see you later|see you tomorrow|bye for now|until next time|bye bye][.|!|]
        [ok|thanks|thank you|great|that is all|I have to go|I must go][.|,] [bye|goodbye|see you|good night|see you later][.|!|]
    """,
    "feel.full": """
        how are you[ today| doing| now|]?
        [hi|hello|hey][,|.|!] how are you[ today| doing|]?
        [are you|do you feel] [well|happy|good|fine|ok|tired][ today|]?
        how [is it going|do you do|do you feel|is your day|was your day]?
    """,
    "ready.full": """
        [are you|is everything] [ready|there|awake|on]?
        can [you|we] [start|begin|go]?
        [hi|hello|hey|ok][,|.] [are you there|are you ready|can we start|shall we start]?
        can you help me[?| with something?| today?]
        [I need|I would like] [some |your |]help[.|, please.]
    """,
    "spell.full": """
        [how do|how would|how should|can] you spell [the word |]{word}?
        [please |can you |could you |]spell [the word |]{word}[.|?| for me.| please.]
        [what are the letters|which letters are] [of|in] [the word |]{word}?
        [give me|tell me|write|list|show me|say] the letters [of|in] [the word |]{word}.
        the letters of {word}[?|, please.|.]
        how is {word} spelled?
        spelling of {word}[?|, please.]
    """,
    "first.full": """
        what is the first letter [of|in] [the word |]{word}?
        [with which|which] letter does {word} [start|begin][ with|]?
        [tell me|say|give me] the first letter of [the word |]{word}.
        the first letter of {word}[?|, please.|.]
        {word}: [which letter is first|what is the first letter|first letter]?
        [how|with what letter] does {word} [start|begin]?
    """,
    "opposite.full": """
        what is the opposite of {word}?
        [tell me|say|give me|name] the opposite of {word}[.|, please.]
        the opposite of {word}[?|, please.| is what?]
        what is [not|the contrary of] {word}?
        [which|what] word [means|says] the opposite of {word}?
    """,
    "fact.full": """
        {question}
        {question}
        <open> {question}
        {question} <close>
        [tell me|quick question|I wonder|my question|question|a small question|do you know]: {question}
        <context> {question}
    """,
    "repeat.full": """
        [say|repeat|write|type|print|answer with] [the word|the name|this word|this name|just|only|exactly|] {word}[.|, please.]
        [please|can you|could you|now|just] [say|repeat|write] {word}[.|?| for me.| once.]
        [repeat after me|say after me|repeat this|say this|write this]: {word}[.|]
    """,
    "name.full": """
        [my name is|I am|I'm|call me|you can call me|they call me|people call me|my friends call me] {name}[.|!|]
        [hi|hello|hey|good morning|good evening][,|.|!] [my name is|I am|I'm|this is|call me] {name}[.|!|]
        {name} is my name[.|!|]
        my name is {name}[, nice to meet you|, what about you|, who are you|][.|?|]
    """,
    "missing.full": """
        what is the weather [like |]in {city}[ today| tomorrow|]?
        [will it|does it|is it going to] rain in {city}[ today| tomorrow|]?
        [play|put on|find] [some music|a song|my song|music][.|, please.|?]
        [call|phone|write to|send a mail to|send a message to] {name}[.|, please.| for me.]
        [book|order|buy|get] [a taxi|a table|a flight|a train|a room|a pizza] [to|in|for] {city}[.|, please.]
        [turn|switch] [on|off] the [light|lights|heating|radio|tv][.|, please.]
        what [time|is the time] [is it|] now?
        what is [the date|the day] today?
        [open|close|lock] the [door|window|garage][.|, please.]
        [show me|find|search for] [pictures of|a map of|news from|a hotel in] {city}[.|, please.]
        [who won|what was the score of] the game [yesterday|in {city}|last night]?
        [translate|say] {word} [in|into|to] [french|german|spanish|italian|chinese][.|, please.|]
    """,
}
