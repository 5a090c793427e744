#!/bin/bash
# Builds GPGPU-Sim for `make gpu-sim`, once, in ten minutes on two cores and without a GPU:
#
#     GSIM=folder tests/cuda/gsim/build_simulator.sh [repository]
#
# The repository is https://github.com/accel-sim/gpgpu-sim_distribution (BSD licence) or a clone of it. Needed: git, g++,
# make, nvcc, pip, unzip, and Debian's flex, bison, xutils-dev, bc, zlib1g-dev and libgl1-mesa-dev. gpgpu-sim.patch
# lets the simulator read PTX from files, mends instructions that it executes wrongly, and counts what is executed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=${1:-https://github.com/accel-sim/gpgpu-sim_distribution}
commit=667834cfe5214523edd7769aeab77f91b7137686
for tool in git g++ make nvcc pip unzip flex bison makedepend bc; do
    command -v $tool > /dev/null || { echo "$tool was not found" >&2; exit 1; }
done
mkdir -p "${GSIM:?must name the folder to build in}"
cd "$GSIM"

git clone --quiet "$repository" src
git -C src checkout --quiet $commit
git -C src apply "$here/gpgpu-sim.patch"

# It accepts toolkits up to CUDA 11, of which the headers are enough.
mkdir -p cuda11/bin
for package in nvcc runtime; do
    pip download --quiet --no-deps --dest wheels nvidia-cuda-$package-cu11==11.8.89
done
for wheel in wheels/*.whl; do
    unzip -qo "$wheel" "nvidia/*/include/*"
done
for headers in nvidia/*/include; do
    cp -r "$headers" cuda11
done
toolkit=$(nvcc --dryrun -x cu -c /dev/null -o /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
cp "$toolkit"/include/{cudaProfiler,cuda_profiler_api}.h cuda11/include
printf '#!/bin/sh\necho "Cuda compilation tools, release 11.8, V11.8.89"\n' > cuda11/bin/nvcc
chmod +x cuda11/bin/nvcc

export CUDA_INSTALL_PATH=$PWD/cuda11
cd src
set +u # its script reads variables that are not set
source setup_environment release
make -j"${JOBS:-2}" > ../build.log 2>&1 || { tail ../build.log >&2; exit 1; }
