"""How people ask about git repositories. Slots: repo, branch, field (what a file holds, in words), file, n."""

TABLES = {
    # One line of a file on a branch; `field` is the file's name or a word for what it holds.
    "show.np": """
        the {field} of [the repository {repo}|the {repo} repository|the repo {repo}|the {repo} repo|the {repo} project|{repo}] on [branch {branch}|the {branch} branch|{branch}]
        the {field} on [branch {branch}|the {branch} branch|{branch}] of [the repository {repo}|the {repo} repository|the {repo} repo|{repo}]
        the {field} in {repo}, branch {branch}
        the {field} that [branch {branch}|the {branch} branch] of {repo} [has|uses|lists]
        the {file} file [on|in] [branch {branch}|the {branch} branch] of [the repository {repo}|{repo}|the {repo} repo]
        {branch}:{file} [in|of|from] [{repo}|the repository {repo}|the {repo} repo]
    """,
    "show.imp": """
        [show|read|open|look up|find|get|check|print|fetch|give me|show me] the {field} [of|in|for] [the repository {repo}|the {repo} repo|{repo}] on [branch {branch}|the {branch} branch|{branch}]
        [show|read|open|print|show me|display] [the file |]{file} [on|from|of] [branch {branch}|the {branch} branch|{branch}] [in|of] [the repository {repo}|{repo}|the {repo} repo]
        [look|check] in [the repository {repo}|the {repo} repo|{repo}] for the {field} on [branch {branch}|the {branch} branch|{branch}]
        [go to|open|take|use] [branch {branch}|the {branch} branch] of {repo} and [read|show me|give me|check|tell me] the {field}
        [in|from] [the repository {repo}|{repo}|the {repo} repo], [show|read|get|give me] the {field} [of|on] [branch {branch}|the {branch} branch]
    """,
    "show.q": """
        what is the {field} of [the repository {repo}|the {repo} repository|the {repo} repo|{repo}] on [branch {branch}|the {branch} branch|{branch}]
        [what|which] {field} does [the repository {repo}|the {repo} repo|{repo}] [have|use|list] on [branch {branch}|the {branch} branch|{branch}]
        [what|which] {field} is [set|given|written|stored|used] [on|in] [branch {branch}|the {branch} branch] of [{repo}|the {repo} repo]
        what does [the file {file}|{file}|the {file} file] say on [branch {branch}|the {branch} branch] of [{repo}|the {repo} repo]
        on [branch {branch}|the {branch} branch] of {repo}, what is the {field}
    """,
    "show.emb": """
        what the {field} of [the repository {repo}|the {repo} repo|{repo}] is on [branch {branch}|the {branch} branch|{branch}]
        [what|which] {field} [the repository {repo}|the {repo} repo|{repo}] [has|uses] on [branch {branch}|the {branch} branch|{branch}]
        what is in [the file {file}|{file}|the {file} file] on [branch {branch}|the {branch} branch] of {repo}
    """,
    "show.full": """
        [I am on|I use|I look at|look at|take] [branch {branch}|the {branch} branch] of [the repository {repo}|{repo}|the {repo} repo]. what is the {field}?
        [repository|repo] {repo}, branch {branch}: [what {field}|the {field}|what is the {field}|{field}]?
        [in|for] {repo} on {branch}: [what is the {field}|which {field}|the {field}|tell me the {field}]?
    """,
    # No branch is named: main is meant.
    "show_main.np": """
        the {field} of [the repository {repo}|the {repo} repository|the repo {repo}|the {repo} repo|the {repo} project]
        the {field} [in|for] [the repository {repo}|the {repo} repository|the {repo} repo]
        the {file} file [in|of] [the repository {repo}|the {repo} repo]
    """,
    "show_main.imp": """
        [show|read|open|look up|find|get|check|print|fetch|show me] the {field} [of|in|for] [the repository {repo}|the {repo} repo|the {repo} repository]
        [show|read|open|print|show me] [the file |]{file} [in|of|from] [the repository {repo}|the {repo} repo]
    """,
    "show_main.q": """
        what is the {field} of [the repository {repo}|the {repo} repository|the {repo} repo]
        [what|which] {field} does [the repository {repo}|the {repo} repo|the {repo} project] [have|use|list]
        what does [the file {file}|{file}|the {file} file] say in [the repository {repo}|the {repo} repo]
    """,
    "show_main.emb": """
        what the {field} of [the repository {repo}|the {repo} repo|the {repo} project] is
        [what|which] {field} [the repository {repo}|the {repo} repo] [has|uses]
    """,
    "log.np": """
        the [last|latest|newest|most recent] commit [message |][of|in|to|on] [the repository {repo}|the {repo} repository|the {repo} repo|{repo}|the {repo} project]
        the [last|latest|newest|most recent] [change|commit] [made |][to|in] [the repository {repo}|the {repo} repo|{repo}]
        the message of the [last|latest|newest|most recent] commit [in|of|to] [{repo}|the {repo} repo]
    """,
    "log.imp": """
        [show|read|look up|find|get|check|print|show me] the [last|latest|newest|most recent] commit [of|in|to] [the repository {repo}|the {repo} repo|{repo}]
        [look|check] in [the repository {repo}|{repo}|the {repo} repo] for the [last|latest|newest] commit
        [show|read|check] the [log|history] of {repo} and [tell|give|show] me the [last|latest|newest] commit
    """,
    "log.q": """
        what is the [last|latest|newest|most recent] commit [of|in|to] [the repository {repo}|the {repo} repo|{repo}]
        what was [changed|done|committed] last in [the repository {repo}|the {repo} repo|{repo}]
        what does the [last|latest|newest] commit [of|in|to] [{repo}|the {repo} repo] [say|do]
        what [happened|changed] last in [the repository {repo}|the {repo} repo]
    """,
    "log.emb": """
        what the [last|latest|newest|most recent] commit [of|in|to] [the repository {repo}|the {repo} repo|{repo}] is
        what was [changed|done|committed] last in [the repository {repo}|the {repo} repo|{repo}]
    """,
    "log_author.np": """
        the author of the [last|latest|newest|most recent] [commit|change] [in|of|to] [the repository {repo}|{repo}|the {repo} repo]
    """,
    "log_author.imp": """
        [find|get|look up|check|name|show me] the author of the [last|latest|newest] [commit|change] [in|of|to] [the repository {repo}|{repo}|the {repo} repo]
        [find out|check|look up|tell me] who [made|wrote] the [last|latest|newest] [commit|change] [in|to] [{repo}|the {repo} repo]
    """,
    "log_author.q": """
        who [made|wrote|did|is the author of] the [last|latest|newest|most recent] [commit|change] [in|to|of] [the repository {repo}|{repo}|the {repo} repo]
        who [changed|worked on] [the repository {repo}|the {repo} repo] last
        who [committed|made a commit] last [to|in] [{repo}|the repository {repo}|the {repo} repo]
    """,
    "log_author.emb": """
        who [made|wrote|did] the [last|latest|newest|most recent] [commit|change] [in|to|of] [the repository {repo}|{repo}|the {repo} repo]
        who [changed|worked on] [the repository {repo}|the {repo} repo] last
        who [committed|made a commit] last [to|in] [{repo}|the {repo} repo]
    """,
    "branches.np": """
        [the|all|all the] branches [of|in] [the repository {repo}|the {repo} repository|the {repo} repo|{repo}|the {repo} project]
        the [list|names] of [the |all |]branches [of|in] [the repository {repo}|{repo}|the {repo} repo]
    """,
    "branches.imp": """
        [list|show|name|find|get|print|show me|look up] [the|all|all the] branches [of|in] [the repository {repo}|the {repo} repo|{repo}]
        [look|check] in [the repository {repo}|the {repo} repo] for its branches
    """,
    "branches.q": """
        [what|which] branches [are there|exist|do we have|can I use|can you find] in [the repository {repo}|the {repo} repo|{repo}]
        [what|which] branches does [the repository {repo}|the {repo} repo|{repo}|the {repo} project] have
        what are the branches of [the repository {repo}|the {repo} repo|{repo}]
    """,
    "branches.emb": """
        [what|which] branches [there are|exist] in [the repository {repo}|the {repo} repo|{repo}]
        [what|which] branches [the repository {repo}|the {repo} repo|{repo}] has
    """,
    "branches.again": """
        {repo}
        the repository {repo}
        the {repo} repo
    """,
    "log.again": """
        {repo}
        the repository {repo}
        the {repo} repo
    """,
}
