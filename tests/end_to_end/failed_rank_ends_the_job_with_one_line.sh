#!/usr/bin/env bash
# When one of four ranks fails, the others do not wait for it: the job ends within 5 s, with that rank's line.
. tests/end_to_end/common.bash

mkdir "$here/record.2" # where rank 2 would write its routing
start=$SECONDS
refuses 3 "routing record cannot be opened.*record.2.*rank 2" train examples/tiny.yaml --set ranks=4 --set sim.record="$here/record" --run "$here/run"
((SECONDS - start < 10)) || wrong "it took $((SECONDS - start)) s"
absent "$here/run"
