//! The names of published files, and what this crate's models call the same arrays.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use crate::Error;

use super::{Checkpoint, Dtype, Entry};
use crate::Shape;

/// The arrays of a checkpoint under the names that the models have for them.
#[derive(Debug)]
pub struct Official<'a> {
    /// The arrays by name, the optimiser's left out.
    pub entries: BTreeMap<Cow<'a, str>, &'a Entry>,
    /// Whether these are an encoder's alone, as classifiers of ImageNet leave them.
    pub encoder_alone: bool,
    /// Names that two arrays have.
    pub(crate) twice: Vec<String>,
}

impl Checkpoint {
    /// Translates the names of the published files:
    ///
    /// - `module.`, from training on several GPUs, goes;
    /// - encoders pretrained on ImageNet (Swin, Mix Transformer) lack `backbone.` before their names;
    ///   those of self-supervised training have `encoder.` there, and other things beside it;
    /// - early files of detectron2 lack `pixel_decoder.` in `sem_seg_head.pixel_decoder.…`, and say
    ///   `static_query` for `query_feat`.
    ///
    /// Files that have the right names are left as they are.
    pub fn official(&self) -> Official<'_> {
        fn bare(name: &str) -> &str {
            name.strip_prefix("module.").unwrap_or(name)
        }
        let names = || self.parameters().map(|(name, _)| bare(name));
        let self_supervised = names().min().is_some_and(|name| name.starts_with("encoder."));
        let inner = |name| match self_supervised {
            true => str::strip_prefix(name, "encoder."),
            false => Some(name),
        };
        let of_encoder = |name: &str| name.starts_with("patch_embed");
        let encoder_alone = !names().any(|name| name.starts_with("backbone."))
            && names().filter_map(inner).any(of_encoder);

        let mut official = Official { entries: BTreeMap::new(), encoder_alone, twice: Vec::new() };
        for (name, entry) in self.parameters() {
            let Some(name) = inner(bare(name)) else { continue };
            let name = if encoder_alone {
                Cow::Owned(format!("backbone.{name}"))
            } else {
                detectron2(name)
            };
            if official.entries.insert(name.clone(), entry).is_some() {
                official.twice.push(name.into_owned());
            }
        }
        official
    }

    /// Adds the buffers that the official modules keep beside what training changes, where they are not
    /// there: without them PyTorch's `load_state_dict` refuses a file unless it is told not to be strict.
    /// `relative_position_index` `[w², w²]` follows from the number of biases; `num_batches_tracked` of a
    /// batch norm, which only a momentum of `None` would read, is 0.
    pub fn add_buffers(&mut self) {
        let buffer = |(name, entry): (&str, &Entry)| {
            if let Some(layer) = name.strip_suffix("relative_position_bias_table") {
                let index = relative_position_index(entry.shape())?;
                return Some((format!("{layer}relative_position_index"), index));
            }
            let layer = name.strip_suffix("running_var")?;
            let zero = Entry::new(Dtype::I64, [], 0_i64.to_le_bytes().into());
            Some((format!("{layer}num_batches_tracked"), zero))
        };
        let buffers: Vec<_> = self.parameters().filter_map(buffer).collect();
        for (name, entry) in buffers {
            self.entries.entry(name).or_insert(entry);
        }
    }
}

/// Which row of a table of biases, `[(2w − 1)², heads]`, belongs to two places of a window: `[w², w²]`.
fn relative_position_index(table: &Shape) -> Option<Entry> {
    let &[rows, _] = table.dims() else { return None };
    let side = rows.isqrt();
    // Windows of 64 would be twice the largest of this crate; a larger index could not be kept.
    if side * side != rows || side % 2 == 0 || side > 127 {
        return None;
    }
    let window = side.div_ceil(2);
    let places = window * window;
    let row = |i: usize, j: usize| {
        let [down, across] =
            [i / window + window - j / window, i % window + window - j % window].map(|d| d - 1);
        (down * side + across) as i64
    };
    let rows = (0..places).flat_map(|i| (0..places).map(move |j| row(i, j)));
    let bytes = rows.flat_map(i64::to_le_bytes).collect();
    Some(Entry::new(Dtype::I64, [places; 2], bytes))
}

/// Today's name of what the first version of detectron2's heads called `name`.
fn detectron2(name: &str) -> Cow<'_, str> {
    let Some(rest) = name.strip_prefix("sem_seg_head.") else { return name.into() };
    if rest.starts_with("predictor.static_query.") {
        return name.replacen("static_query", "query_feat", 1).into();
    }
    if rest.starts_with("pixel_decoder.") || rest.starts_with("predictor.") {
        return name.into();
    }
    format!("sem_seg_head.pixel_decoder.{rest}").into()
}

/// What is wrong with a file of an encoder where a whole model is wanted.
pub(crate) fn encoder_alone(path: &Path) -> Error {
    let reason = "holds an encoder alone, such as those pretrained on ImageNet: training can start \
                  from it (train --init), but it has no head";
    Error::invalid_file(path, reason)
}

/// Whether published files have an array of this name that no model needs: it follows from the
/// configuration, or belongs to the classifier that the encoder was pretrained for.
pub(crate) fn is_needless(name: &str) -> bool {
    const DERIVED: &[&str] =
        &["relative_position_index", "attn_mask", "num_batches_tracked", "criterion.empty_weight"];
    const CLASSIFIER: &[&str] = &["backbone.head.", "backbone.norm.", "backbone.fc."];
    DERIVED.iter().any(|end| name.ends_with(end))
        || CLASSIFIER.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(names: &[&str]) -> (Vec<String>, bool) {
        let mut checkpoint = Checkpoint::default();
        for name in names {
            checkpoint.insert(*name, Entry::from_f32([1], &[0.0]));
        }
        let official = checkpoint.official();
        assert!(official.twice.is_empty());
        (official.entries.into_keys().map(Cow::into_owned).collect(), official.encoder_alone)
    }

    #[test]
    fn published_names_become_the_models() {
        for (names, wanted, encoder_alone) in [
            (
                &["module.backbone.a", "module.decode_head.b"][..],
                &["backbone.a", "decode_head.b"][..],
                false,
            ),
            (&["backbone.patch_embed.proj.weight"], &["backbone.patch_embed.proj.weight"], false),
            (
                &["layers.0.x", "norm.weight", "patch_embed.norm.bias"],
                &["backbone.layers.0.x", "backbone.norm.weight", "backbone.patch_embed.norm.bias"],
                true,
            ),
            (
                &["block1.0.attn.q.bias", "patch_embed1.proj.weight"],
                &["backbone.block1.0.attn.q.bias", "backbone.patch_embed1.proj.weight"],
                true,
            ),
            (
                &["encoder.layers.0.x", "encoder.patch_embed.proj.bias", "projector.0.bias"],
                &["backbone.layers.0.x", "backbone.patch_embed.proj.bias"],
                true,
            ),
            (
                &[
                    "backbone.norm0.bias",
                    "optimizer.m.backbone.norm0.bias",
                    "sem_seg_head.adapter_1.weight",
                    "sem_seg_head.pixel_decoder.layer_1.weight",
                    "sem_seg_head.predictor.static_query.weight",
                ],
                &[
                    "backbone.norm0.bias",
                    "sem_seg_head.pixel_decoder.adapter_1.weight",
                    "sem_seg_head.pixel_decoder.layer_1.weight",
                    "sem_seg_head.predictor.query_feat.weight",
                ],
                false,
            ),
        ] {
            let (found, alone) = translated(names);
            assert_eq!(found, wanted, "{names:?}");
            assert_eq!(alone, encoder_alone, "{names:?}");
        }
    }

    /// As Swin's code makes it: coordinates of all pairs, shifted to start at 0.
    #[test]
    fn buffers_follow_from_parameters() {
        let mut checkpoint = Checkpoint::default();
        for (name, shape) in [
            ("a.relative_position_bias_table", &[9, 3][..]),
            ("b.relative_position_bias_table", &[16, 3]),
            ("c.relative_position_bias_table", &[1, 1]),
            ("optimizer.m.d.relative_position_bias_table", &[9, 3]),
            ("n.running_var", &[2]),
        ] {
            let len = shape.iter().product();
            checkpoint.insert(name, Entry::from_f32(shape, &vec![0.0; len]));
        }
        let given = Entry::new(Dtype::I64, [], 7_i64.to_le_bytes().into());
        checkpoint.insert("m.running_var", Entry::from_f32([1], &[0.0]));
        checkpoint.insert("m.num_batches_tracked", given.clone());
        let before = checkpoint.clone();
        checkpoint.add_buffers();
        let added = |name: &str| {
            let entry = &checkpoint.entries[name];
            assert_eq!(entry.dtype(), Dtype::I64);
            let values = entry.bytes().as_chunks().0.iter().map(|&v| i64::from_le_bytes(v));
            (entry.shape().dims(), values.collect::<Vec<_>>())
        };
        let (shape, index) = added("a.relative_position_index");
        assert_eq!(shape, [4, 4]);
        assert_eq!(index, [4, 3, 1, 0, 5, 4, 2, 1, 7, 6, 4, 3, 8, 7, 5, 4]);
        assert_eq!(added("c.relative_position_index"), (&[1, 1][..], vec![0]));
        assert_eq!(added("n.num_batches_tracked"), (&[][..], vec![0]));
        assert_eq!(checkpoint.entries["m.num_batches_tracked"], given);
        assert_eq!(checkpoint.entries.len(), before.entries.len() + 3);
        let again = checkpoint.clone();
        checkpoint.add_buffers();
        assert_eq!(checkpoint, again);
    }

    #[test]
    fn two_arrays_of_one_name_are_noticed() {
        let mut checkpoint = Checkpoint::default();
        for name in ["backbone.a", "module.backbone.a"] {
            checkpoint.insert(name, Entry::from_f32([1], &[0.0]));
        }
        assert_eq!(checkpoint.official().twice, ["backbone.a"]);
    }
}
