# Shorthands; what each does is in the script or tool it calls.

default:
    @just --list

# Everything CI runs.
test:
    scripts/test

fmt:
    cargo fmt

lint:
    cargo fmt --check
    cargo clippy --all-targets --locked -- -D warnings

serve *arguments:
    scripts/serve {{ arguments }}

# Licences, advisories and sources of all dependencies.
deny:
    cargo deny check
