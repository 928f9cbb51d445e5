//! The rows of `semask_gpu::bench` under criterion: `cargo bench --bench kernels -- a1`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use semask_gpu::Gpu;
use semask_gpu::bench::{Bench, ROWS};
use semask_gpu::gpu::GpuOptions;

fn kernels(criterion: &mut Criterion) {
    let adapter = std::env::var("SEMASK_GPU_DEVICE").ok();
    let gpu = Gpu::open(&GpuOptions { adapter, ..GpuOptions::default() }).expect("a GPU driver");
    // What the command line does not ask for is not even planned.
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(&**f));
    for (name, what) in ROWS.iter().filter(|(name, _)| wanted(name)) {
        let bench = match Bench::new(&gpu, name) {
            Ok(bench) => bench,
            Err(error) => {
                eprintln!("{name}, {what}: {error}");
                continue;
            }
        };
        let mut group = criterion.benchmark_group(*name);
        group.sample_size(10);
        for ((mode, plan), bytes) in bench.modes.iter().zip(&bench.bytes) {
            group.throughput(Throughput::Bytes(*bytes));
            group.bench_function(mode, |bencher| bencher.iter(|| plan.run().expect("it ran")));
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
