//! Numbers of the reference implementation: `kernels-tests/fixtures`, and for what is not there
//! `shared/fixtures` beside the checkout.
//!
//! A fixture has inputs (`in.*`), weights (`w.*`), expected results (`out.*`), the gradient that
//! flows into a result (`gout.*`) and the expected gradients (`gin.*`, `gw.*`). Expected values
//! were computed in `f64`. Images are `[B, C, H, W]` there and `[B, H, W, C]` here.
//!
//! ```ignore
//! let Some(fx) = Fixture::open("block.resize") else { return };
//! let x = fx.image(&GPU, "in.x").tracked();
//! …
//! fx.check_image("out.up2", &y.read(&GPU).unwrap());
//! ```
#![allow(dead_code, reason = "each block's test uses what it needs")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use semask_gpu::{Gpu, Shape, Tensor};
use serde_json::Value;

/// One file of reference numbers.
pub(crate) struct Fixture {
    name: String,
    /// How the reference was set up.
    pub(crate) config: Value,
    arrays: HashMap<String, Array>,
    /// The file's entry in `index.json`: how far a correct `f32` run is off.
    index: Value,
}

struct Array {
    shape: Vec<usize>,
    data: Data,
}

enum Data {
    F32(Vec<f32>),
    I64(Vec<i64>),
    U8(Vec<u8>),
}

impl Fixture {
    /// The fixture `name`, or `None` and a line that says so where it is missing: the reference
    /// numbers do not come with the published crate.
    pub(crate) fn open(name: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folders = [root.join("kernels-tests/fixtures"), root.join("../shared/fixtures")];
        let file = |folder: &PathBuf| folder.join(format!("{name}.safetensors"));
        let Some(folder) = folders.iter().find(|f| file(f).exists()) else {
            println!("skipped: no fixture {name}");
            return None;
        };
        let bytes = std::fs::read(file(folder)).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let config = metadata.metadata().as_ref().and_then(|m| m.get("config"));
        let config = config.map_or(Value::Null, |text| serde_json::from_str(text).unwrap());
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let arrays = tensors.tensors().into_iter().map(|(name, view)| {
            let data = match view.dtype() {
                Dtype::F32 => Data::F32(bytemuck::pod_collect_to_vec(view.data())),
                Dtype::I64 => Data::I64(bytemuck::pod_collect_to_vec(view.data())),
                Dtype::U8 | Dtype::BOOL => Data::U8(view.data().to_vec()),
                other => panic!("{name} is of type {other:?}"),
            };
            (name, Array { shape: view.shape().to_vec(), data })
        });
        let index = std::fs::read_to_string(folder.join("index.json"));
        let mut index: Value =
            index.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
        let index = index[format!("{name}.safetensors")]["tensors"].take();
        Some(Self { name: name.to_owned(), config, arrays: arrays.collect(), index })
    }

    #[track_caller]
    fn array(&self, name: &str) -> &Array {
        self.arrays.get(name).unwrap_or_else(|| panic!("{} has no {name}", self.name))
    }

    /// What the file is called, without ending.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is an array `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.arrays.contains_key(name)
    }

    /// Names of all arrays that start with `prefix`, sorted.
    pub(crate) fn names(&self, prefix: &str) -> Vec<&str> {
        let names = self.arrays.keys().map(String::as_str);
        let mut names: Vec<_> = names.filter(|n| n.starts_with(prefix)).collect();
        names.sort_unstable();
        names
    }

    /// Whether `name` is of numbers with a fraction.
    #[track_caller]
    pub(crate) fn is_f32(&self, name: &str) -> bool {
        matches!(self.array(name).data, Data::F32(_))
    }

    /// The extents of `name` in the file; of an image, `[B, C, H, W]`.
    #[track_caller]
    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        &self.array(name).shape
    }

    #[track_caller]
    pub(crate) fn f32(&self, name: &str) -> &[f32] {
        let Data::F32(data) = &self.array(name).data else { panic!("{name} is not f32") };
        data
    }

    /// Integers of any type: labels, indices, masks.
    #[track_caller]
    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        match &self.array(name).data {
            Data::I64(data) => data.clone(),
            Data::U8(data) => data.iter().map(|&v| v.into()).collect(),
            Data::F32(_) => panic!("{name} is not of integers"),
        }
    }

    /// Labels 0 to 255.
    #[track_caller]
    pub(crate) fn labels(&self, name: &str) -> Vec<u8> {
        self.integers(name).into_iter().map(|v| u8::try_from(v).unwrap()).collect()
    }

    /// `name` on the device, in the shape of the file.
    #[track_caller]
    pub(crate) fn tensor(&self, gpu: &Gpu, name: &str) -> Tensor {
        Tensor::from_slice(gpu, self.shape(name), self.f32(name))
    }

    /// The image `name` on the device, `[B, H, W, C]`.
    #[track_caller]
    pub(crate) fn image(&self, gpu: &Gpu, name: &str) -> Tensor {
        let [b, c, h, w] = self.image_shape(name);
        Tensor::from_slice(gpu, [b, h, w, c], &nchw_to_nhwc(self.f32(name), [b, c, h, w]))
    }

    #[track_caller]
    fn image_shape(&self, name: &str) -> [usize; 4] {
        self.shape(name).try_into().unwrap_or_else(|_| panic!("{name} is not [B, C, H, W]"))
    }

    /// How far `name` may be off: a few times what a `f32` run of the reference is off, for
    /// another order of sums.
    #[track_caller]
    pub(crate) fn tolerance(&self, name: &str) -> f64 {
        let measured = &self.index[name]["torch_f32"];
        if measured["analytically_zero"] == true {
            let gradients = self.arrays.iter().filter(|(n, _)| n.starts_with('g'));
            let gradients = gradients.filter(|(n, _)| !n.starts_with("gout."));
            let largest = gradients.map(|(_, a)| largest(a)).fold(0.0, f64::max);
            return 1e-6 * largest;
        }
        let scale = measured["scale"].as_f64().unwrap_or_else(|| largest(self.array(name)));
        let max_abs = measured["max_abs"].as_f64().unwrap_or(1e-6 * scale);
        // Of a single number it is one draw, not the largest of many, and may be small by luck.
        let factor = if Shape::from(self.shape(name)).len() == 1 { 32.0 } else { 8.0 };
        factor * max_abs + 2e-6 * scale + 1e-7
    }

    /// Asserts that `got` is the expected `name`, within its [`tolerance`](Self::tolerance).
    #[track_caller]
    pub(crate) fn check(&self, name: &str, got: &[f32]) {
        let zero = self.index[name]["torch_f32"]["analytically_zero"] == true;
        let (expected, tolerance) = (self.f32(name), self.tolerance(name));
        assert_eq!(got.len(), expected.len(), "{}: {name}: length", self.name);
        for (at, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            let expected = if zero { 0.0 } else { f64::from(expected) };
            let error = (f64::from(got) - expected).abs();
            assert!(
                error <= tolerance,
                "{}: {name}[{at}]: {got} but expected {expected} (off {error:.1e} of {tolerance:.1e})",
                self.name
            );
        }
    }

    /// [`check`](Self::check) of an image that is `[B, H, W, C]`.
    #[track_caller]
    pub(crate) fn check_image(&self, name: &str, got: &[f32]) {
        self.check(name, &nhwc_to_nchw(got, self.image_shape(name)));
    }

    /// Asserts that `got` is the expected `name`, exactly.
    #[track_caller]
    pub(crate) fn check_integers<T: Copy + Into<i64>>(&self, name: &str, got: &[T]) {
        let expected = self.integers(name);
        assert_eq!(got.len(), expected.len(), "{}: {name}: length", self.name);
        for (at, (&got, expected)) in got.iter().zip(expected).enumerate() {
            assert_eq!(got.into(), expected, "{}: {name}[{at}]", self.name);
        }
    }
}

fn largest(array: &Array) -> f64 {
    let Data::F32(data) = &array.data else { return 0.0 };
    data.iter().fold(0.0, |max, v| f64::max(max, v.abs().into()))
}

/// `[B, C, H, W]` → `[B, H, W, C]`; `shape` is the former.
#[track_caller]
pub(crate) fn nchw_to_nhwc<T: Copy>(data: &[T], shape: [usize; 4]) -> Vec<T> {
    let [b, c, h, w] = shape;
    swap_last(data, b, c, h * w)
}

/// `[B, H, W, C]` → `[B, C, H, W]`; `shape` is the latter.
#[track_caller]
pub(crate) fn nhwc_to_nchw<T: Copy>(data: &[T], shape: [usize; 4]) -> Vec<T> {
    let [b, c, h, w] = shape;
    swap_last(data, b, h * w, c)
}

/// `[B, M, N]` → `[B, N, M]`.
#[track_caller]
fn swap_last<T: Copy>(data: &[T], batch: usize, m: usize, n: usize) -> Vec<T> {
    assert_eq!(data.len(), Shape::from([batch, m, n]).len(), "data does not fill the image");
    let at = |i: usize| i / (m * n) * m * n + i % m * n + i / m % n;
    (0..data.len()).map(|i| data[at(i)]).collect()
}

#[test]
fn layouts_convert_both_ways() {
    let shape = [2, 3, 2, 2];
    let nchw: Vec<usize> = (0..24).collect();
    let nhwc = nchw_to_nhwc(&nchw, shape);
    assert_eq!(nhwc[..6], [0, 4, 8, 1, 5, 9]);
    assert_eq!(nhwc_to_nchw(&nhwc, shape), nchw);
}
