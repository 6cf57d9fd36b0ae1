"""How people have things noted and read back. Slots: key (the note's name), text (its content)."""

TABLES = {
    "set.imp": """
        [save|store|keep|write|write down|note|note down|record|remember|put down] [a note {key}|the note {key}|a note called {key}|a note named {key}]: {text}
        [save|store|keep|write|write down|note|note down|record|remember|put] "{text}" [under|as|in|in the note|under the name|in my note|with the name] {key}
        [save|store|keep|write|write down|note|record|remember|put] {text} [under|as|in the note|under the name|in my note|under the key] {key}
        [make|create|add|start|set|open] [a note|a new note|the note|my note] {key} [with|saying|that says|with the text|with the words|and write] {text}
        [make|create|add|set|start] [a note|a new note] [called|named] {key} [with|saying|that says|with the text|and put in] {text}
        [set|change|update|replace] [the note {key}|note {key}|my note {key}|my {key} note] to {text}
        [under|in the note|in my note|in] {key}, [write|save|note|put|store|keep|write down] {text}
        [remember|save|note|store|write down] for [my |the |]{key}: {text}
        [note|save|remember|keep|write down]: {key} is {text}
        [remember|note|save|write down] that [my|the] {key} [note |]is {text}
        leave [a note|me a note] {key}: {text}
    """,
    "set.full": """
        [note for|new note for|new note|note|for my note|for the note|my note] {key}: {text}.
        {key}: {text}. [please save that|save this|keep this note|note that|remember this|write it down|store it].
        {text}. [save that|keep that|note that|remember that|write that down|store that] [as|under|in the note|under the name] {key}[, please.|.|, thanks.]
        I [want|need|would like] [a note|a new note] [called|named] {key} [with|that says|saying] {text}.
        I [must not|should not|do not want to|never want to] forget {key}: {text}. [save it|note it|write it down|keep it].
        [my|the] {key} is {text}. [save|keep|note|remember|store] [this|that|it][ for me|, please|].
        [the name is|call it|name it] {key}, the text is {text}. [save the note|make the note|write the note|save it].
        {name} [says|told me|wrote]: {text}. [note that|save it|put that] under {key}.
    """,
    "get.np": """
        [my|the] note {key}
        [my|the] {key} note
        [my|the] note [called|named|under|about|for] {key}
        what [is in|is written in|I wrote in|I saved in|I have in] [my|the] note {key}
        the [text|content|words] of [my|the] note {key}
        what [I saved|I stored|I wrote|I noted|I kept|you saved|you have] [under|as|for|in] {key}
    """,
    "get.imp": """
        [read|open|show|show me|bring up|look up|load|get|find|fetch|check|display|print] [my|the] [note {key}|{key} note]
        [read|open|show me|look up|get|find|check] [my|the|] note [called|named|for|about] {key}
        [read|say|repeat|tell me] [back |]what [is in|I wrote in|is under|I saved under|you saved under] {key}
        read [my|the] note {key} [to me|back to me|out|aloud]
        [look|check|see] what is [under|in] {key}
        [look in|look at|go to|have a look at] [my|the] note {key}
        remind me [of|about] [my|the] {key} note
    """,
    "get.q": """
        what [does|did] [my|the] [note {key}|{key} note] say
        what is [in|written in|written under|saved under|stored under|saved as|under] [my|the|] [note {key}|{key} note|{key}]
        what [did I|did we|have I] [save|write|note|store|keep|put|write down] [under|in|for|as] {key}
        what do [I|you|we] have [under|in|for|about] {key}
        what was [my|the] [note {key}|{key} note]
        what was the [text|content] of note {key}
        which [text|words] [is|are] in [my|the] note {key}
    """,
    "get.emb": """
        what [my|the] [note {key}|{key} note] [says|said|was]
        what [I wrote|I saved|I noted|I put|you saved|is|is written|is saved] [in|under|for] [note |the note |my note |]{key}
        what is in [my|the] [note {key}|{key} note]
    """,
    "get.full": """
        [my|the] {key} note: [what does it say|what is in it|what was it|read it, please|can you read it]?
        I [made|saved|wrote|left|have] a note [called|named|about] {key}. [what does it say|what is in it|read it to me|show it|what was it]?
        I forgot [my|the] {key} note. [what was it|what does it say|can you read it|please look it up]?
        note {key}[?|, please.|: read it.|.]
        [there is|there should be|you have|I left] a note {key}[. read it.|. what is in it?|: please open it.]
    """,
    "get.again": """
        {key}
        the note {key}
        my note {key}
    """,
    # Asked in the turn after the same note was set.
    "recall.full": """
        [what does it say|what did I save|what did I write|read it back|read it to me|read it back to me|show it to me|show me the note]?
        [what is in|read|show me|open|repeat|check|what did I write in|what does it say in] [the note|my note|that note|the note {key}|{key}][?|.]
        [is it saved|did you save it|was it saved|did it work]? [read it|show me|read the note|show it].
        [can you|could you|please] [read|show|repeat|check|open] [it|it again|the note|that note|the note {key}][?|.]
        [and |now |][what was|what is] [the note|my note|the text|it] [again|]?
        let me [see|check|hear] [it|the note|that note|what I wrote|what you saved].
        I forgot [it|already|what I wrote|what it says]. [read the note|what does it say|show me]?
    """,
}
