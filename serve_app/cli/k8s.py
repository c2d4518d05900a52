"""`darkroom k8s`: renders manifests from the configuration, and checks whether a cluster would run an overlay."""

from pathlib import Path
from typing import Annotated

import typer

from deployments.engine.protocol.errors import InvalidParameter
from serve_app.cli.exits import EXIT_FAILED, EXIT_USAGE, exit_on_errors, exit_with
from serve_app.cli.results import save
from serve_app.config.errors import ConfigError
from serve_app.kubernetes.manifests import Unbuildable, build
from serve_app.kubernetes.rendering import render_files

app = typer.Typer(help="Manifests for KubeRay.", no_args_is_help=True)


@app.command()
def render(
    folder: Annotated[Path, typer.Option(help="The folder with `base` and `overlays`.")] = Path("k8s"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 for a file that would change.")
    ] = False,
) -> None:
    """Write what the manifests say of the application, from each overlay's `darkroom.yaml`."""
    with exit_on_errors():
        if not (folder / "base").is_dir():
            raise InvalidParameter("folder", f"there is no folder {str(folder / 'base')!r}")
        files = dict(render_files(folder))
        stale = [file for file, text in files.items() if not file.is_file() or file.read_bytes() != text.encode()]
        for file in stale:
            if not check:
                save(file, files[file].encode())
            print(f"{file} {'is not' if check else 'now is'} what the configuration says")
    if check and stale:
        raise exit_with("run `darkroom k8s render`", EXIT_FAILED)


@app.command()
def check(
    overlay: Annotated[Path, typer.Argument(help="A folder that `kubectl apply -k` takes.")],
    crd: Annotated[Path | None, typer.Option(help="KubeRay's ray.io_rayservices.yaml: looks into every field.")] = None,
) -> None:
    """Look for what a cluster would refuse, or accept and never make ready. Needs `pip install 'darkroom[k8s]'`."""
    try:
        from serve_app.kubernetes.checks import find_faults
    except ImportError:
        raise exit_with("this needs more packages: pip install 'darkroom[k8s]'", EXIT_USAGE) from None
    try:
        found = list(find_faults(build(overlay), crd))
    except (ConfigError, Unbuildable) as error:
        raise exit_with(str(error), EXIT_USAGE) from None
    for fault in found:
        print(fault)
    if found:
        raise exit_with(f"{len(found)} of these must be put right", EXIT_FAILED)
    print("nothing is wrong, as far as can be seen without a cluster")
