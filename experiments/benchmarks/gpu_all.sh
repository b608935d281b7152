#!/usr/bin/env bash
# All that waits for a GPU, in one go of at most 12 minutes: attention, DiT's training and sampling
# beside torch.compile, and a profile.
#
#     bash experiments/benchmarks/gpu_all.sh           # results in $OUT, or ./gpu_results
#     bash experiments/benchmarks/gpu_all.sh --tiny    # a check of it, on any machine: minutes
#
# What is worth most comes first, every part has a time limit of its own, and results are written as
# they are made: whenever it is cut short, $OUT/summary.md, gpu_dit.json and attention.json hold what
# had been measured. The same command again leaves out the parts that are done; compiled programs
# are kept in $CACHE, and packed into $OUT/cache.tar for another machine, which finds them where
# CACHE_FROM names that file. They are not made in parallel beforehand: XLA times kernels on the card
# while it compiles, and would choose among them by what the others left of it.
#
# Environment: OUT, MINUTES (12), BATCH (32), PYTHON (python3), VENV and CACHE (where what is
# installed and what is compiled is kept, outside OUT), CACHE_FROM.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

tiny=()
[[ ${1-} == --tiny ]] && tiny=(--tiny)
if (($# > ${#tiny[@]})); then
  echo "gpu_all.sh: got $*; allowed: --tiny, or nothing" >&2
  exit 2
fi
out=$(realpath -m "${OUT:-gpu_results}")
limit=$((60 * ${MINUTES:-12}))
cache=${CACHE:-${TMPDIR:-/tmp}/jaxgen_gpu_cache}
venv=${VENV:-${TMPDIR:-/tmp}/jaxgen_gpu_venv}
python=${PYTHON:-python3}
mkdir -p "$out" "$cache" || exit 1
log=$out/log.txt about="" running=""
slack=1 # of the parts' limits
touch "$log"
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=$cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export TORCHINDUCTOR_CACHE_DIR=$cache/inductor TORCHINDUCTOR_FX_GRAPH_CACHE=1
export TRITON_CACHE_DIR=$cache/triton
((${#tiny[@]})) && export JAX_PLATFORMS=cpu slack=3

say() { printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$log"; }

# How each part ended, the last time that it was tried: its name, that, and seconds. From the log.
ended() {
  awk -F'\t' '$1 == "PART" { if (!($2 in last)) order[++n] = $2; last[$2] = $2 FS $3 FS $4 }
    END { for (i = 1; i <= n; i++) print last[order[i]] }' "$log"
}

# Write what there is so far as one page.
summary() {
  {
    printf '# One GPU, all of it\n\n%s\n\n' "$about"
    printf '| part | ended | seconds |\n|-|-|-:|\n'
    ended | awk -F'\t' '{ printf "| %s | %s | %s |\n", $1, $2, $3 }'
    for page in gpu_dit.md attention.md; do
      [[ -s $out/$page ]] && printf '\n' && cat "$out/$page"
    done
  } >"$out/summary.md.new"
  mv "$out/summary.md.new" "$out/summary.md"
}

# Compiled programs, for another machine.
pack() {
  tar -cf "$out/cache.tar.new" -C "$cache" . 2>>"$log" && mv "$out/cache.tar.new" "$out/cache.tar"
}

# part NAME SECONDS COMMAND...: once, within SECONDS and within what is left of all.
part() {
  local name=$1 most=$2 left=$((limit - SECONDS - 10)) begin=$SECONDS status said
  shift 2
  most=$((most * slack))
  if [[ $name != install* ]] && ended | grep -q "^$name"$'\t''done'; then
    say "$name: done before"
    return 0
  fi
  if ((left < 15)); then
    say "$name: no time left"
    said="no time left"
  else
    say "$name: at most $((most < left ? most : left)) s"
    timeout --kill-after=5 "$((most < left ? most : left))" "$@" >>"$log" 2>&1 &
    running=$!
    wait "$running"
    status=$?
    running=""
    case $status in
      0) said="done" ;;
      124 | 137) said="cut at its limit" ;;
      *) said="failed with $status" ;;
    esac
    say "$name: $said"
  fi
  printf 'PART\t%s\t%s\t%d\n' "$name" "$said" "$((SECONDS - begin))" >>"$log"
  summary
  pack
  [[ $said == "done" ]]
}

# Whether the machine has what is measured: JAX with a GPU, PyTorch with one, diffusers.
has() {
  "$python" - "$1" <<'PY' >>"$log" 2>&1
import sys

if sys.argv[1] == "jax":
    import flax, jax, optax

    jax.devices("cpu" if jax.config.jax_platforms == "cpu" else "gpu")
else:
    import diffusers, torch

    import jax

    assert (jax.devices()[0].platform == "gpu") == torch.cuda.is_available()
PY
}

install() {
  "$python" -m venv --system-site-packages "$venv" &&
    "$venv/bin/pip" install --quiet "$@"
}

trap '[[ -n $running ]] && kill "$running"; say "cut from outside"; summary; exit 143' INT TERM
if [[ -n ${CACHE_FROM-} ]]; then
  tar -xf "$CACHE_FROM" -C "$cache" && say "compiled programs of $CACHE_FROM"
fi
[[ -x $venv/bin/python ]] && ((${#tiny[@]} == 0)) && python=$venv/bin/python
export -f install
export python venv
if ! has jax; then
  if ((${#tiny[@]} == 0)); then
    part "install JAX" 150 bash -c 'install -e ".[cuda]"'
    python=$venv/bin/python
  fi
  if ((${#tiny[@]})) || ! has jax; then
    say "JAX has no $( ((${#tiny[@]})) && echo CPU || echo GPU) here; the end of $log says why"
    summary
    exit 1
  fi
fi
peer=()
((${#tiny[@]})) && peer=(--eager)
if ! has torch; then
  if ((${#tiny[@]} == 0)); then
    part "install PyTorch" 120 bash -c 'install torch diffusers'
    [[ -x $venv/bin/python ]] && python=$venv/bin/python
  fi
  if ((${#tiny[@]})) || ! has torch; then
    say "no PyTorch and diffusers, or none that see the GPU: jaxgen alone"
    peer=(--jaxgen_only)
  fi
fi
about=$({
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit \
    --format=csv,noheader
  "$python" -c 'from experiments.benchmarks import machine; print(machine.line())'
  git log -1 --format='commit %h of %cs'
} 2>>"$log" | sed 's/$/  /')

dit=("$python" -m experiments.benchmarks.gpu_dit --add --out "$out" --batch "${BATCH:-32}"
  "${tiny[@]}")
attention=("$python" -m experiments.benchmarks.attention --out "$out" "${tiny[@]}")

# Ours first: the other side's compilation is the longest of all, and ours is in the cache by then.
part "train XL/2, jaxgen, and profile" 120 \
  "${dit[@]}" --tasks train,profile --sizes XL/2 --jaxgen_only --trace "$out/train_xl.xplane.pb"
((${#peer[@]})) && [[ ${peer[0]} == --jaxgen_only ]] ||
  part "train XL/2" 180 "${dit[@]}" --tasks train --sizes XL/2 "${peer[@]}"
part "sample XL/2, DPM-Solver++" 120 "${dit[@]}" --tasks sample --solvers dpmpp_2m "${peer[@]}"
part "attention" 90 "${attention[@]}"
part "train L/2" 120 "${dit[@]}" --tasks train --sizes L/2 "${peer[@]}"
part "train B/2" 90 "${dit[@]}" --tasks train --sizes B/2 "${peer[@]}"
part "sample XL/2, DDPM" 200 \
  "${dit[@]}" --tasks sample --solvers ddpm --sample_rounds 2 "${peer[@]}"
summary
say "results: $out/summary.md"
! ended | grep -qv $'\t''done'$'\t'
