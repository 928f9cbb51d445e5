//! The choice among variants of kernels.

use std::collections::BTreeSet;

use semask_gpu::bench::host;
use semask_gpu::gpu::{Family, Plan, Profile, Recorder, Tuning, Variant, tune};
use semask_gpu::ops::Windows;
use semask_gpu::random::Rng;
use semask_gpu::{Gpu, Tape, Tensor, ops};

use crate::support::{GPU, MATRICES, devices, random};

/// Work of each family.
fn work(gpu: &Gpu) -> Recorder {
    let mut rng = Rng::new(3, 0);
    let mut tensor = |shape: &[usize]| {
        let values = random(&mut rng, shape.iter().product());
        Tensor::from_slice(gpu, shape, &values)
    };
    let [x, weight] = [tensor(&[70, 40]), tensor(&[34, 40])];
    let [image, filter] = [tensor(&[1, 9, 8, 8]), tensor(&[8, 8, 3, 3])];
    let [qkv, qkv_bias, bias] = [tensor(&[1, 5, 5, 48]), tensor(&[48]), tensor(&[2, 9, 9])];
    let mut tape = Tape::inference(gpu.profile());
    let y = ops::linear(&mut tape, &x, &weight, None);
    let z = ops::conv3x3(&mut tape, &image, &filter);
    let windows = Windows { size: 3, shift: 0 };
    let attended = ops::window_attention(&mut tape, &qkv, &qkv_bias, &bias, windows);
    tape.recorder().keep(&y, "y");
    tape.recorder().keep(&z, "z");
    tape.recorder().keep(&attended, "attended");
    tape.finish()
}

fn files(recorder: &Recorder) -> BTreeSet<String> {
    let kernels = Plan::describe(recorder).kernels.into_keys();
    kernels.map(|name| name.split('.').next().unwrap().to_owned()).collect()
}

#[test]
fn a_forced_variant_runs() {
    let with = |product, convolution| {
        let tuning = Tuning::default();
        let tuning = tuning.with(Family::Product, product).with(Family::Convolution, convolution);
        files(&work(&GPU.with_tuning(tuning)))
    };
    let (registers, tiles) = (Variant::Registers, Variant::Tiles);
    let found = with(registers, tiles);
    assert!(found.contains("matmul_packed") && found.contains("conv3x3_tiled"), "{found:?}");
    let found = with(tiles, registers);
    assert!(found.contains("matmul_tiled") && !found.contains("conv3x3_tiled"), "{found:?}");
    assert!(!found.contains("matmul_packed"), "{found:?}");

    for variant in Family::WindowAttention.variants(GPU.profile()) {
        let tuning = Tuning::default().with(Family::WindowAttention, variant);
        let found = files(&work(&GPU.with_tuning(tuning)));
        let lanes = variant == Variant::Lanes;
        assert_eq!(found.contains("window_attention_lanes"), lanes, "{found:?}");
        assert_eq!(found.contains("window_attention"), !lanes, "{found:?}");
    }
}

#[test]
fn every_variant_is_timed_and_one_of_them_is_chosen() {
    let (tuning, found) = tune(&GPU, 1, |gpu| Ok(work(gpu))).unwrap();
    let classes: BTreeSet<&str> = found.iter().map(|tuned| &*tuned.class).collect();
    let expected = [
        "convolution: pixels 128, inputs 8, outputs 8",
        "product: batch 1, m 128, k 64, n 64",
        "window attention: windows 4, heads 2, tokens 16, channels 8",
    ];
    assert_eq!(classes, expected.into());
    assert_eq!(tuning.len(), 3);
    for tuned in &found {
        let timed: Vec<Variant> = tuned.times.iter().map(|(variant, _)| *variant).collect();
        let of_class = |family: &Family| tuned.class.starts_with(&family.to_string());
        let family = Family::ALL.into_iter().find(of_class).unwrap();
        assert_eq!(timed, family.variants(GPU.profile()));
        assert!(tuned.times.iter().all(|(_, ms)| *ms > 0.0), "{tuned:?}");
        assert!(timed.contains(&tuned.chosen));
    }
    let chosen = found.iter().find(|tuned| tuned.class.starts_with("product")).unwrap().chosen;
    let file = match chosen {
        Variant::Lanes => "matmul_lanes",
        Variant::Registers => "matmul_packed",
        Variant::Tiles | Variant::SmallTiles => "matmul_tiled",
        Variant::Matrices => "matmul_matrix",
    };
    assert!(files(&work(&GPU.with_tuning(tuning))).contains(file), "{chosen}");
}

#[test]
fn matrix_units_run_where_they_are_chosen_and_the_sizes_suit_them() {
    if GPU.profile().matrix.is_none() {
        eprintln!("skipped: {} has no matrix units", GPU.name());
        return;
    }
    let files_of = |gpu: &Gpu, rows: usize| {
        let [x, weight] = [[rows, 32], [48, 32]].map(|shape| Tensor::pinned("operand", shape));
        let mut tape = Tape::training(gpu.profile()).mixed(true);
        ops::linear(&mut tape, &x, &weight, None);
        files(&tape.finish())
    };
    let has = |gpu: &Gpu, rows| files_of(gpu, rows).contains("matmul_matrix");
    assert!(has(&MATRICES, 64) && !has(&MATRICES, 63) && !has(&GPU, 64));
}

#[test]
fn small_tiles_run_where_they_are_chosen_and_the_sizes_suit_them() {
    // Needs no GPU.
    let chosen = Tuning::default().with(Family::Product, Variant::SmallTiles);
    let chosen = Profile { tuning: chosen.into(), ..Profile::default() };
    let is_small = |profile: &Profile, [m, k, n]: [usize; 3]| {
        let [x, weight] = [[m, k], [n, k]].map(|shape| Tensor::pinned("operand", shape));
        let mut tape = Tape::inference(profile);
        ops::linear(&mut tape, &x, &weight, None);
        tape.finish().programs().iter().any(|p| p.kernel.label().contains(" small "))
    };
    assert!(is_small(&chosen, [32, 32, 33]) && is_small(&chosen, [256, 768, 2304]));
    assert!(!is_small(&Profile::default(), [256, 768, 2304]));
    // Fewer rows than a tile has, and sums not in its steps, which large tiles take.
    assert!(!is_small(&chosen, [31, 32, 33]) && !is_small(&chosen, [64, 48, 64]));
}

#[test]
fn the_op_tests_cover_every_variant() {
    let covered: BTreeSet<String> =
        devices().into_iter().flat_map(|(_, gpu)| files(&work(gpu))).collect();
    for family in Family::ALL {
        for variant in family.variants(GPU.profile()) {
            let forced = GPU.with_tuning(Tuning::default().with(family, variant));
            let files = files(&work(&forced));
            assert!(files.is_subset(&covered), "{family}, {variant}: {files:?}");
        }
    }
}

#[test]
fn a_plan_compiles_what_it_runs_and_nothing_else() {
    // Needs no GPU.
    let gpu = host::no_driver(wgpu::DeviceType::DiscreteGpu).unwrap();
    assert!(!gpu.profile().cpu);
    let recorder = work(&gpu);
    let description = Plan::describe(&recorder);
    let kernels = description.kernels.len();
    // One constant for each: no kernel of these has several.
    assert_eq!(gpu.compile(&recorder), kernels);
    assert_eq!(gpu.compile(&recorder), 0);
    let plan = Plan::new(&gpu, &recorder).unwrap();
    assert_eq!(plan.calls() as u64, description.dispatches());
    plan.run().unwrap();
}

#[test]
fn a_tuned_profile_is_not_that_of_the_bare_device() {
    let tuned = GPU.with_tuning(Tuning::default().with(Family::Product, Variant::Tiles));
    let bare = Profile { tuning: GPU.profile().tuning.clone(), ..tuned.profile().clone() };
    assert_eq!(&bare, GPU.profile());
    assert_ne!(tuned.profile(), GPU.profile());
    assert_eq!(tuned.identity(), GPU.identity());
}
