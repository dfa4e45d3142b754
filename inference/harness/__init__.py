"""mull in lm-evaluation-harness: a model of its, the command around it, and tasks at several depths out of one unroll.

    mull lm-eval parity --tasks parity_choice --iterations 1,4,16
    lm-eval run --model mull --model_args pretrained=FOLDER,iterations=16 ...      (where lm-eval reads entry points)

Of these files model.py and tasks.py import lm_eval, which is optional (`pip install 'mull[eval]'`), and nothing else
imports them before a command has asked for it.
"""
