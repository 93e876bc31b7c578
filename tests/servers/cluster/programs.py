"""The programs of a cluster, built from their Go modules, and kept by what they are built of."""

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

SOURCES = Path(__file__).parent / "servers"
KUBERNETES = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)
"""What one program is called as: five share most of what they are compiled of."""
_VERSION = "1.37.2"
_MODULES = {
    "pause": ("cluster", "./pause"),
    "kubernetes": ("cluster", "./kubernetes"),
    "etcd": ("cluster", "go.etcd.io/etcd/server/v3"),
    "coredns": ("cluster", "./coredns"),
    "kube-router": ("cluster", "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"),
    # Each knows another age of Kubernetes' libraries, and compiles with none but that.
    "kueue": ("kueue", "sigs.k8s.io/kueue/cmd/kueue"),
    "kuberay": ("kuberay", "github.com/ray-project/kuberay/ray-operator"),
}
"""Each program with the module below `servers`, in which its versions stand, and its package."""
_OPERATORS = {
    "kueue": "sigs.k8s.io/kueue",
    "kuberay": "github.com/ray-project/kuberay/ray-operator",
}
_OF_DEBIAN = {
    "containerd": "containerd", "ctr": "containerd", "runc": "runc", "iptables": "iptables",
    "ipset": "ipset", "nft": "nftables", "conntrack": "conntrack", "socat": "socat",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}  # fmt: skip
"""Other programs, and the packages that they come with."""
_OPTIONS = ("-p", "2", "-trimpath", "-gcflags=all=-dwarf=false")  # dwarf=false: a tenth less time


def missing() -> list[str]:
    """What keeps a cluster from starting here, each in words; nothing where one can start."""
    found = [] if os.geteuid() == 0 else ["root"]
    found += sorted({package for name, package in _OF_DEBIAN.items() if shutil.which(name) is None})
    found += ["kubectl"] if shutil.which("kubectl") is None else []
    found += ["Go"] if unbuilt() and shutil.which("go") is None else []
    if unbuilt():
        found.append("the programs that `make cluster` builds")
    return found


def folder() -> Path:
    """Where these programs lie: named by the hash of what they are built of, and how."""
    files = sorted(path for path in SOURCES.rglob("*") if path.is_file())
    digest = hashlib.sha256(repr((_MODULES, _OPTIONS, _VERSION)).encode())
    for path in files:
        digest.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes())
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vae-pipeline/cluster" / digest.hexdigest()[:16]


def unbuilt() -> list[str]:
    """Programs that the cache lacks."""
    return [name for name in _MODULES if not (folder() / name).exists()]


def build() -> Path:
    """Builds what the cache lacks, and copies the operators' own manifests from their modules."""
    here = folder()
    here.mkdir(parents=True, exist_ok=True)
    for name in unbuilt():
        began, new = time.monotonic(), here / f".{name}"
        module, package = _MODULES[name]
        flags = f"-ldflags={_link_flags(name)}"
        _go(module, "build", *_OPTIONS, flags, "-o", str(new), package)
        new.rename(here / name)
        print(f"Built {name} in {time.monotonic() - began:.0f} s", flush=True)
    for name, module in _OPERATORS.items():
        if not (here / "config" / name).exists():
            source = Path(_go(name, "list", "-m", "-f", "{{.Dir}}", module).strip()) / "config"
            shutil.copytree(source, here / "config" / name)
            subprocess.run(["chmod", "-R", "u+w", str(here / "config")], check=True)
    for name in KUBERNETES:
        link = here / name
        if not link.is_symlink():
            link.symlink_to("kubernetes")
    return here


def _link_flags(name: str) -> str:
    if name != "kubernetes":
        return "-s -w"
    where, (major, minor, _) = "k8s.io/component-base/version", _VERSION.split(".")
    return (
        f"-s -w -X {where}.gitVersion=v{_VERSION} -X {where}.gitMajor={major} "
        f"-X {where}.gitMinor={minor} -X {where}.gitTreeState=archive"
    )


def _go(module: str, *arguments: str) -> str:
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly",
    }
    done = subprocess.run(
        ["go", *arguments],
        cwd=SOURCES / module,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"go {arguments[0]} of {module}: {done.stderr[-3000:]}")
    return done.stdout


def main() -> None:
    """Installs and builds; where that can't be, says so: the tests are skipped then."""
    lacking = [need for need in missing() if need in ("root", "Go")]
    if lacking:
        print(f"No cluster can be built here, for want of: {', '.join(lacking)}")
        return
    install = SOURCES.parents[1] / "install.sh"
    subprocess.run(["bash", str(install), *sorted(set(_OF_DEBIAN.values()))], check=True)
    build()


if __name__ == "__main__":
    main()
