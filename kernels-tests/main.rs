//! Every kernel against a plain reference: `cargo test --test kernels`.
