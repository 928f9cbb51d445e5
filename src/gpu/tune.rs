//! Which variant of a kernel runs: [`Family`], [`Variant`], [`Tuning`], [`tune`].
//!
//! Variants compute the same up to rounding. What runs is decided here: by what the device says of
//! itself, or as [`tune`] has timed it on the device. Tuning is nobody's default: times differ from one
//! measurement to the next, and with the variant the last bits of a result. What it has found stays the
//! same until it is asked again, and a training run takes its choices along in its checkpoints.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Gpu, Plan, Profile, Recorder, Timeline};
use crate::Result;

/// Kernels that do the same work, in several ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Matrix products.
    Product,
    /// Matrix products of 16-bit numbers, in mixed precision.
    HalfProduct,
    /// 3 × 3 convolutions.
    Convolution,
    /// Attention within windows.
    WindowAttention,
}

/// A way to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As [`Registers`](Self::Registers), for [`Profile::lanes`]; sizes that do not suit it run that.
    Lanes,
    /// An invocation has a tall tile in its registers; there are no barriers. For drivers on CPUs, and for
    /// attention within windows on GPUs too.
    Registers,
    /// The invocations of a workgroup share tiles in its memory. For GPUs.
    Tiles,
    /// As [`Tiles`](Self::Tiles), with a quarter of them to a workgroup, for products too small to fill a GPU; sizes
    /// that do not suit it run that.
    SmallTiles,
    /// Subgroups multiply matrices of 16-bit numbers as one, for [`Profile::matrix`]; sizes that do not suit it run
    /// [`Tiles`](Self::Tiles). wgpu calls the feature experimental, so it runs only where it was timed
    /// and chosen.
    Matrices,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Product, Self::HalfProduct, Self::Convolution, Self::WindowAttention];

    /// The variants that a device can run, the one that suits its kind first.
    pub fn variants(self, profile: &Profile) -> Vec<Variant> {
        let mut variants = match profile {
            Profile { lanes: true, .. } => vec![Variant::Lanes, Variant::Registers, Variant::Tiles],
            Profile { cpu: true, .. } => vec![Variant::Registers, Variant::Tiles],
            _ if matches!(self, Self::Product | Self::HalfProduct) => {
                vec![Variant::Tiles, Variant::SmallTiles, Variant::Registers]
            }
            _ => vec![Variant::Tiles, Variant::Registers],
        };
        if self == Self::HalfProduct && profile.matrix.is_some() {
            variants.push(Variant::Matrices);
        }
        if self == Self::WindowAttention {
            variants.retain(|variant| *variant != Variant::Tiles);
        }
        variants
    }

    /// What work of these sizes is called: shapes between two powers of two are one class.
    fn class(self, sizes: &[(&str, usize)]) -> String {
        let sizes: Vec<_> = sizes
            .iter()
            .map(|(name, size)| format!("{name} {}", size.next_power_of_two()))
            .collect();
        format!("{self}: {}", sizes.join(", "))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Product => "product",
            Self::HalfProduct => "16-bit product",
            Self::Convolution => "convolution",
            Self::WindowAttention => "window attention",
        })
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lanes => "lanes",
            Self::Registers => "registers",
            Self::Tiles => "tiles",
            Self::SmallTiles => "small tiles",
            Self::Matrices => "matrices",
        })
    }
}

/// Variants that were chosen for a device, instead of those that suit its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tuning {
    /// By class of shapes, or by family for all others of it.
    choices: BTreeMap<String, Variant>,
}

impl Tuning {
    /// `variant` for all of `family` that has no choice of its own.
    #[must_use]
    pub fn with(mut self, family: Family, variant: Variant) -> Self {
        self.choices.insert(family.to_string(), variant);
        self
    }

    /// Takes over the choices of `other`; they win.
    pub fn extend(&mut self, other: Self) {
        self.choices.extend(other.choices);
    }

    /// How many choices there are.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Whether nothing was chosen.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    fn choice(&self, family: Family, class: &str) -> Option<Variant> {
        self.choices.get(class).or_else(|| self.choices.get(&family.to_string())).copied()
    }
}

impl Recorder {
    /// Records work of a family and of `sizes` with `record`, which is told the variant.
    pub(crate) fn decide<T>(
        &mut self,
        family: Family,
        sizes: &[(&str, usize)],
        record: impl FnOnce(&mut Self, Variant) -> T,
    ) -> T {
        let class = family.class(sizes);
        let possible = family.variants(self.profile());
        let chosen = self.profile().tuning.choice(family, &class);
        let variant = chosen.filter(|v| possible.contains(v)).unwrap_or(possible[0]);
        let outer = self.class.replace(class.into());
        let result = record(self, variant);
        self.class = outer;
        result
    }
}

/// What [`tune`] found for a class of shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuned {
    /// Family and sizes.
    pub class: Arc<str>,
    /// Milliseconds of all such work in a step, by variant; that for the device's kind is the first.
    pub times: Vec<(Variant, f64)>,
    /// The variant that is to run.
    pub chosen: Variant,
}

/// Times every variant on `gpu` with the recording that `record` makes for it, `runs` times after one that
/// does not count, and chooses the fastest for each class of shapes.
///
/// # Errors
///
/// Those of `record`, and of planning and running what it makes.
pub fn tune(
    gpu: &Gpu,
    runs: usize,
    mut record: impl FnMut(&Gpu) -> Result<Recorder>,
) -> Result<(Tuning, Vec<Tuned>)> {
    let variants = Family::ALL.map(|family| (family, family.variants(gpu.profile())));
    let rounds = variants.iter().map(|(_, variants)| variants.len()).max().unwrap_or(0);
    let mut found: Vec<Tuned> = Vec::new();
    for round in 0..rounds {
        let nth = |tuning: Tuning, (family, variants): &(Family, Vec<Variant>)| match variants
            .get(round)
        {
            Some(variant) => tuning.with(*family, *variant),
            None => tuning,
        };
        let forced = gpu.with_tuning(variants.iter().fold(Tuning::default(), nth));
        let plan = Plan::new(&forced, &record(&forced)?)?;
        plan.run()?;
        let replays = (0..runs.max(1)).map(|_| plan.profile()).collect::<Result<Vec<_>>>()?;
        let timeline = Timeline::median(replays);
        for (family, variants) in &variants {
            let Some(&variant) = variants.get(round) else { continue };
            for (class, ms) in times_of(*family, &timeline) {
                match found.iter_mut().find(|tuned| tuned.class == class) {
                    Some(tuned) => tuned.times.push((variant, ms)),
                    None => {
                        found.push(Tuned { class, times: vec![(variant, ms)], chosen: variant })
                    }
                }
            }
        }
    }
    let mut tuning = Tuning::default();
    for tuned in &mut found {
        tuned.chosen = fastest(&tuned.times);
        tuning.choices.insert(tuned.class.to_string(), tuned.chosen);
    }
    found.sort_by(|a, b| b.times[0].1.total_cmp(&a.times[0].1));
    Ok((tuning, found))
}

/// Milliseconds of each class of a family.
fn times_of(family: Family, timeline: &Timeline) -> BTreeMap<Arc<str>, f64> {
    let start = format!("{family}:");
    let mut times = BTreeMap::new();
    for dispatch in &timeline.dispatches {
        if let Some(class) = dispatch.class.as_ref().filter(|class| class.starts_with(&start)) {
            *times.entry(class.clone()).or_default() += dispatch.ms;
        }
    }
    times
}

/// The variant for the device's kind, which is the first, unless another is faster by more than noise.
fn fastest(times: &[(Variant, f64)]) -> Variant {
    const NOISE: f64 = 0.05;
    let (usual, usual_ms) = times[0];
    let faster = times[1..].iter().filter(|(_, ms)| *ms < (1.0 - NOISE) * usual_ms);
    faster.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(usual, |(variant, _)| *variant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Variant::{Registers, Tiles};

    /// The variant that a recording for `profile` gets.
    fn variant(profile: &Profile, family: Family, size: usize) -> Variant {
        Recorder::new(profile).decide(family, &[("n", size)], |_, variant| variant)
    }

    #[test]
    fn a_choice_holds_for_its_class_and_the_kind_of_device_decides_otherwise() {
        let mut tuning = Tuning::default();
        tuning.choices.insert("product: n 128".into(), Registers);
        let profile = Profile { tuning: tuning.clone().into(), ..Profile::default() };
        assert_eq!(variant(&profile, Family::Product, 100), Registers);
        assert_eq!(variant(&profile, Family::Product, 128), Registers);
        assert_eq!(variant(&profile, Family::Product, 129), Tiles);
        assert_eq!(variant(&profile, Family::Convolution, 100), Tiles);

        let tuning = tuning.with(Family::Product, Tiles);
        let profile = Profile { cpu: true, tuning: tuning.into(), ..Profile::default() };
        assert_eq!(variant(&profile, Family::Product, 100), Registers);
        assert_eq!(variant(&profile, Family::Product, 129), Tiles);
        assert_eq!(variant(&profile, Family::Convolution, 100), Registers);
    }

    #[test]
    fn what_is_hardly_faster_is_not_chosen() {
        assert_eq!(fastest(&[(Tiles, 1.0), (Registers, 0.97)]), Tiles);
        assert_eq!(fastest(&[(Tiles, 1.0), (Registers, 0.9)]), Registers);
        assert_eq!(fastest(&[(Tiles, 0.0), (Registers, 0.0)]), Tiles);
    }

    #[test]
    fn choices_survive_being_written() {
        let tuning = Tuning::default().with(Family::Convolution, Tiles);
        let text = serde_json::to_string(&tuning).unwrap();
        assert_eq!(text, r#"{"convolution":"tiles"}"#);
        assert_eq!(serde_json::from_str::<Tuning>(&text).unwrap(), tuning);
    }
}
