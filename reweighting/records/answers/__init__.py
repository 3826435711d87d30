"""Whether the final answer of a response is the true one, without a judge model.

In reading order: :mod:`.comparison` holds what others call. :mod:`.extraction` finds the final
answer of a response, with what stands beside it in :mod:`.boxes` and the lines :mod:`.following`
it, unless a :mod:`.retraction` takes it back. :mod:`.notation`
rewrites it in one notation; :mod:`.quantities` reads numbers, also in :mod:`.number_words`, with
their :mod:`.units`. Then what the true answer is decides: the letter or text of an option is
compared in :mod:`.options`; a quantity, expression, list, interval, equation or text in
:mod:`.values`, after :mod:`.structure` has told which of these it is. :mod:`.expressions` prepares
mathematics for math-verify, which :mod:`.mathematics` runs in a helper process, with limited time.
"""
