//! [`Confusion`]: counts of pixels, and the [`Scores`] that follow from them.

use std::fmt;

use serde::Serialize;

use crate::{Error, Result};

/// The label of pixels that do not count.
const IGNORE: u8 = 255;

/// How many pixels of each class were taken for which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    /// K, the number of classes.
    pub classes: usize,
    /// `[K, K]`: by label, then by prediction.
    pub counts: Vec<u64>,
}

/// What a [`Confusion`] is worth, as fractions. A mean over no class is NaN, and null in JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Mean intersection over union, over the classes that are labelled or predicted.
    pub miou: f64,
    /// Mean accuracy of the classes that are labelled.
    pub macc: f64,
    /// Fraction of the labelled pixels that are right.
    pub aacc: f64,
    /// Each class by itself.
    pub per_class: Vec<ClassScore>,
}

/// The score of one class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    /// Intersection over union; absent where the class is neither labelled nor predicted.
    pub iou: Option<f64>,
    /// Fraction of its pixels that are right; absent where it has none.
    pub acc: Option<f64>,
    /// Pixels that have this label.
    pub pixels: u64,
}

impl Confusion {
    /// No pixels yet.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Counts that were made elsewhere: `[K, K]`, by label, then by prediction.
    ///
    /// # Panics
    ///
    /// If there are not `classes · classes` of them.
    #[track_caller]
    pub fn from_counts(classes: usize, counts: Vec<u64>) -> Self {
        assert_eq!(counts.len(), classes * classes, "confusion: counts of {classes} classes");
        Self { classes, counts }
    }

    /// Counts the pixels of a picture; those labelled 255 do not count, whatever is predicted there.
    ///
    /// # Errors
    ///
    /// When a label is neither a class nor 255; nothing is counted then.
    ///
    /// # Panics
    ///
    /// If the pictures differ in size, or a prediction that counts is no class.
    #[track_caller]
    pub fn add(&mut self, predictions: &[u8], labels: &[u8]) -> Result<()> {
        assert_eq!(predictions.len(), labels.len(), "confusion: pixels predicted and labelled");
        let outside = |&label: &u8| usize::from(label) >= self.classes && label != IGNORE;
        if let Some(pixel) = labels.iter().position(outside) {
            return Err(Error::invalid(
                format!("label {} of pixel {pixel}", labels[pixel]),
                format!("there are classes 0..={} and 255, which is ignored", self.classes - 1),
            ));
        }
        for (&prediction, &label) in predictions.iter().zip(labels) {
            if label != IGNORE {
                let prediction = usize::from(prediction);
                assert!(prediction < self.classes, "confusion: class {prediction} is predicted");
                self.counts[usize::from(label) * self.classes + prediction] += 1;
            }
        }
        Ok(())
    }

    /// Adds the counts of `other`.
    ///
    /// # Panics
    ///
    /// If it has other classes.
    #[track_caller]
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.classes, other.classes, "confusion: classes");
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
    }

    /// The scores, by the rules of mmsegmentation. With I pixels rightly predicted, P predicted and
    /// L labelled as a class:
    ///
    /// ```text
    /// IoU = I / (P + L − I)    acc = I / L    aAcc = ΣI / ΣL
    /// ```
    ///
    /// 0/0 is left out of the means. A class that is predicted but never labelled has IoU 0 and no
    /// acc.
    pub fn scores(&self) -> Scores {
        let k = self.classes;
        let right = |c: usize| self.counts[c * k + c];
        let labelled = |c: usize| self.counts[c * k..][..k].iter().sum::<u64>();
        let predicted = |c: usize| self.counts[c..].iter().step_by(k).sum::<u64>();
        let per_class: Vec<_> = (0..k)
            .map(|c| {
                let (i, l, p) = (right(c), labelled(c), predicted(c));
                ClassScore { iou: ratio(i, p + l - i), acc: ratio(i, l), pixels: l }
            })
            .collect();
        let total = self.counts.iter().sum();
        Scores {
            miou: mean(per_class.iter().filter_map(|class| class.iou)),
            macc: mean(per_class.iter().filter_map(|class| class.acc)),
            aacc: ratio((0..k).map(right).sum(), total).unwrap_or(f64::NAN),
            per_class,
        }
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
    sum / n
}

impl Scores {
    /// A table of all classes, under the names `classes`, and the means; in percent.
    ///
    /// # Panics
    ///
    /// If there are not as many names as classes.
    #[track_caller]
    pub fn table<'a>(&'a self, classes: &'a [String]) -> impl fmt::Display {
        assert_eq!(classes.len(), self.per_class.len(), "scores: names of classes");
        ScoreTable { scores: self, classes }
    }
}

struct ScoreTable<'a> {
    scores: &'a Scores,
    classes: &'a [String],
}

impl fmt::Display for ScoreTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |value: Option<f64>| match value {
            Some(value) if !value.is_nan() => format!("{:.2}", 100.0 * value),
            _ => "-".into(),
        };
        let Scores { miou, macc, aacc, per_class } = self.scores;
        let total: u64 = per_class.iter().map(|class| class.pixels).sum();
        let means = ["mean", "all pixels"].map(str::len).into_iter();
        let lengths = self.classes.iter().map(|name| name.chars().count()).chain(means);
        let width = lengths.max().unwrap_or(0);

        writeln!(f, "{:width$}  {:>6}  {:>6}  {:>6}", "class", "IoU", "acc", "pixels")?;
        for (name, class) in self.classes.iter().zip(per_class) {
            let share = percent(ratio(class.pixels, total));
            let (iou, acc) = (percent(class.iou), percent(class.acc));
            writeln!(f, "{name:width$}  {iou:>6}  {acc:>6}  {share:>6}")?;
        }
        let (miou, macc) = (percent(Some(*miou)), percent(Some(*macc)));
        writeln!(f, "{:width$}  {miou:>6}  {macc:>6}", "mean")?;
        write!(f, "{:width$}  {:>6}  {:>6}", "all pixels", "", percent(Some(*aacc)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, Dtype};
    use crate::testing;

    #[test]
    fn scores_equal_the_original_frameworks() {
        let Some(path) = testing::fixture("eval.miou.safetensors") else { return };
        let file = Checkpoint::read(&path).unwrap();
        let bytes = |name: &str| file.get(name).unwrap().bytes();
        let floats = |name: &str| file.get(name).unwrap().to_f32().unwrap();
        let counts = |name: &str| -> Vec<u64> {
            assert_eq!(file.get(name).unwrap().dtype(), Dtype::I64);
            bytes(name).as_chunks().0.iter().map(|&v| u64::from_le_bytes(v)).collect()
        };

        // Three pictures, each counted by itself.
        let mut confusion = Confusion::new(19);
        let pixels = 37 * 41;
        for (pred, label) in bytes("in.pred").chunks(pixels).zip(bytes("in.label").chunks(pixels)) {
            let mut one = Confusion::new(19);
            one.add(pred, label).unwrap();
            confusion.merge(&one);
        }
        // theirs: [K + 1, K + 1], by prediction, then by label; the last of both is ignored.
        let theirs = counts("out.confusion");
        for (label, row) in confusion.counts.chunks(19).enumerate() {
            for (pred, &count) in row.iter().enumerate() {
                assert_eq!(count, theirs[pred * 20 + label]);
            }
        }
        assert_eq!(confusion, Confusion::from_counts(19, confusion.counts.clone()));

        let scores = confusion.scores();
        let near = |ours: f64, theirs: f32, what: &str| {
            assert!((ours - f64::from(theirs)).abs() <= 1e-7, "{what}: {ours} is not {theirs}");
        };
        let summary = floats("out.mmseg.summary");
        near(scores.aacc, summary[0], "aAcc");
        near(scores.miou, summary[1], "mIoU");
        near(scores.macc, summary[2], "mAcc");
        let classes = floats("out.mmseg.iou").into_iter().zip(floats("out.mmseg.acc"));
        let labelled = counts("out.area_label");
        for (c, (class, (iou, acc))) in scores.per_class.iter().zip(classes).enumerate() {
            // The file has -1 for NaN.
            near(class.iou.unwrap_or(-1.0), iou, &format!("IoU of class {c}"));
            near(class.acc.unwrap_or(-1.0), acc, &format!("acc of class {c}"));
            assert_eq!(class.pixels, labelled[c]);
        }
        assert!(scores.per_class.iter().any(|class| class.acc.is_none()), "the case worth testing");
    }

    #[test]
    fn a_class_nobody_has_is_left_out_and_one_wrongly_predicted_is_not() {
        let mut confusion = Confusion::new(4);
        // Class 2 is predicted but never labelled, class 3 neither.
        confusion.add(&[0, 0, 2, 1, 3], &[0, 0, 0, 1, 255]).unwrap();
        let scores = confusion.scores();
        let class = |iou, acc, pixels| ClassScore { iou, acc, pixels };
        let wanted = [
            class(Some(2.0 / 3.0), Some(2.0 / 3.0), 3),
            class(Some(1.0), Some(1.0), 1),
            class(Some(0.0), None, 0),
            class(None, None, 0),
        ];
        assert_eq!(scores.per_class, wanted);
        assert_eq!(scores.aacc, 0.75);
        assert!((scores.miou - 5.0 / 9.0).abs() < 1e-15 && (scores.macc - 5.0 / 6.0).abs() < 1e-15);
    }

    #[test]
    fn no_pixels_have_no_scores() {
        let scores = Confusion::new(2).scores();
        assert!(scores.miou.is_nan() && scores.macc.is_nan() && scores.aacc.is_nan());
        let json = serde_json::to_value(&scores).unwrap();
        assert!(json["miou"].is_null() && json["per_class"][0]["iou"].is_null());
    }

    #[test]
    fn a_label_outside_the_classes_is_an_error_with_its_pixel() {
        let mut confusion = Confusion::new(19);
        let error = confusion.add(&[0, 0, 0], &[18, 255, 19]).unwrap_err().to_string();
        assert_eq!(
            error,
            "label 19 of pixel 2: there are classes 0..=18 and 255, which is ignored"
        );
        assert_eq!(confusion, Confusion::new(19));
    }

    #[test]
    fn the_table_lines_up() {
        let mut confusion = Confusion::new(3);
        confusion.add(&[0, 0, 1], &[0, 0, 0]).unwrap();
        let names = ["sky", "traffic sign", "caf\u{e9}"].map(String::from);
        let table = confusion.scores().table(&names).to_string();
        let wanted = "\
class            IoU     acc  pixels
sky            66.67   66.67  100.00
traffic sign    0.00       -    0.00
caf\u{e9}               -       -    0.00
mean           33.33   66.67
all pixels             66.67";
        assert_eq!(table, wanted, "\n{table}");
    }
}
