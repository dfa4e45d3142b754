"""`mull serve`: an OpenAI server whose requests say how long to think. It needs the extra `serve`.

protocol  what a request may say            thinking  one call of a batch, in steps
efforts   how long an effort thinks         lanes     rows that share batches
limits    how much may be asked             schedule  whose turn it is
replies   the answers as OpenAI has them    application, running   HTTP
"""
