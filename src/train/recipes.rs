//! The recipes that come with the program: the files of `recipes/`, one for each published result
//! and for its baseline.

use serde::{Deserialize, Serialize};

use super::recipe::Recipe;
use super::strict;
use crate::{Error, Result};

/// A recipe that comes with the program.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// What `preset = "…"`, `--preset` and `semask-gpu train` know it by.
    pub name: &'static str,
    /// Its TOML.
    text: &'static str,
}

/// What is known of a recipe beyond what it does: its `[about]` table, which runs do not read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// What it is, in a line.
    pub title: String,
    /// Where network and settings come from.
    pub source: String,
    /// The published mean intersection over union in percent, at a single scale.
    pub miou: Option<f64>,
    /// The same over several scales, each straight and mirrored.
    pub miou_multi_scale: Option<f64>,
    /// Trained parameters of the official model.
    pub parameters: Option<usize>,
}

macro_rules! recipes {
    ($($name:literal)*) => {
        &[$(Named { name: $name, text: include_str!(concat!("../../recipes/", $name, ".toml")) }),*]
    };
}

/// All of them.
pub static RECIPES: &[Named] = recipes![
    "quickstart"
    "semask-t" "semask-s" "semask-b" "semask-l"
    "semask-t-ade20k" "semask-s-ade20k" "semask-b-ade20k" "semask-l-ade20k"
    "semask-t-cityscapes" "semask-s-cityscapes" "semask-b-cityscapes" "semask-l-cityscapes"
    "semask-t-coco-stuff-10k" "semask-s-coco-stuff-10k"
    "semask-b-coco-stuff-10k" "semask-l-coco-stuff-10k"
    "semask-l-maskformer-ade20k" "semask-l-mask2former-ade20k"
    "semask-l-fapn-ade20k" "semask-l-msfapn-ade20k" "semask-l-mask2former-cityscapes"
    "swin-t" "swin-s" "swin-b" "swin-l"
    "swin-t-ade20k" "swin-s-ade20k" "swin-b-ade20k" "swin-l-ade20k"
    "swin-t-cityscapes" "swin-s-cityscapes" "swin-b-cityscapes" "swin-l-cityscapes"
    "swin-t-coco-stuff-10k" "swin-s-coco-stuff-10k"
    "swin-b-coco-stuff-10k" "swin-l-coco-stuff-10k"
    "swin-l-maskformer-ade20k" "swin-l-mask2former-ade20k"
    "swin-l-fapn-ade20k" "swin-l-msfapn-ade20k" "swin-l-mask2former-cityscapes"
    "semask-mit-b0" "semask-mit-b0-ade20k"
    "semask-mit-b0-cityscapes" "semask-mit-b0-coco-stuff-10k"
    "mit-b0" "mit-b0-ade20k"
    "mit-b0-cityscapes" "mit-b0-coco-stuff-10k"
    "semask-mit-b1" "semask-mit-b1-ade20k"
    "semask-mit-b1-cityscapes" "semask-mit-b1-coco-stuff-10k"
    "mit-b1" "mit-b1-ade20k"
    "mit-b1-cityscapes" "mit-b1-coco-stuff-10k"
    "semask-mit-b2" "semask-mit-b2-ade20k"
    "semask-mit-b2-cityscapes" "semask-mit-b2-coco-stuff-10k"
    "mit-b2" "mit-b2-ade20k"
    "mit-b2-cityscapes" "mit-b2-coco-stuff-10k"
    "semask-mit-b3" "semask-mit-b3-ade20k"
    "semask-mit-b3-cityscapes" "semask-mit-b3-coco-stuff-10k"
    "mit-b3" "mit-b3-ade20k"
    "mit-b3-cityscapes" "mit-b3-coco-stuff-10k"
    "semask-mit-b4" "semask-mit-b4-ade20k"
    "semask-mit-b4-cityscapes" "semask-mit-b4-coco-stuff-10k"
    "mit-b4" "mit-b4-ade20k"
    "mit-b4-cityscapes" "mit-b4-coco-stuff-10k"
    "semask-mit-b5" "semask-mit-b5-ade20k"
    "semask-mit-b5-cityscapes" "semask-mit-b5-coco-stuff-10k"
    "mit-b5" "mit-b5-ade20k"
    "mit-b5-cityscapes" "mit-b5-coco-stuff-10k"
];

impl Named {
    /// The recipe called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with the likely one when there is none.
    pub fn get(name: &str) -> Result<&'static Self> {
        let found = RECIPES.iter().find(|recipe| recipe.name == name);
        found.ok_or_else(|| {
            let near = strict::nearest(name, RECIPES.iter().map(|recipe| recipe.name));
            let near = near.map(|near| format!("did you mean {near}? ")).unwrap_or_default();
            let reason = format!("{near}`semask-gpu recipes` lists all, such as quickstart");
            Error::invalid(format!("preset {name:?}"), reason)
        })
    }

    /// The recipe itself.
    ///
    /// # Errors
    ///
    /// None for those that come with the program, as a test makes sure.
    pub fn recipe(&self) -> Result<Recipe> {
        Recipe::from_toml(self.text, self.name)
    }

    /// What is known of it.
    pub fn about(&self) -> About {
        let table: toml::Table = self.text.parse().expect("embedded and tested");
        let about = table.get("about").expect("embedded and tested").clone();
        about.try_into().expect("embedded and tested")
    }

    /// Its TOML with every value, ready to be changed; what is known of it stands in comments.
    ///
    /// # Errors
    ///
    /// As [`Named::recipe`].
    pub fn to_toml(&self) -> Result<String> {
        let About { title, source, miou, miou_multi_scale, .. } = self.about();
        let mut text = String::new();
        for line in self.text.lines().take_while(|line| line.starts_with('#')) {
            text += &format!("{line}\n");
        }
        text += &format!("#\n# {title}\n# Source: {source}\n");
        if let Some(miou) = miou {
            text += &format!("# Published mIoU: {miou:.2}");
            if let Some(miou) = miou_multi_scale {
                text += &format!(", several scales and mirrored {miou:.2}");
            }
            text += "\n";
        }
        Ok(format!("{text}\n{}", self.recipe()?.to_toml()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::data::Format;
    use crate::data::augment::Ratios;
    use crate::model::{Model, ModelConfig, PRESETS};
    use crate::nn::Init;

    #[test]
    fn each_file_is_listed_and_each_recipe_is_named_after_its_file() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let files: BTreeSet<String> = (std::fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let listed: BTreeSet<String> =
            RECIPES.iter().map(|recipe| format!("{}.toml", recipe.name)).collect();
        assert_eq!(files, listed);
        for named in RECIPES {
            assert_eq!(named.recipe().unwrap().name, named.name);
            assert!(named.about().title.len() > 10);
        }
    }

    #[test]
    fn each_builds_and_has_the_published_number_of_parameters() {
        let mut published = 0;
        for named in RECIPES {
            let mut recipe = named.recipe().unwrap();
            if recipe.model.num_classes == 0 {
                recipe.set_num_classes(150).unwrap();
            }
            let model = Model::new(&recipe.model).unwrap();
            if let Some(parameters) = named.about().parameters {
                assert_eq!(model.parameters().count(), parameters, "{}", named.name);
                published += 1;
            }
        }
        assert_eq!(published, 17);
    }

    #[test]
    fn networks_are_those_of_the_engine() {
        for (name, _) in PRESETS {
            let wanted = ModelConfig { num_classes: 0, ..ModelConfig::preset(name).unwrap() };
            assert_eq!(Recipe::preset(name).unwrap().model, wanted, "{name}");
        }
    }

    #[test]
    fn what_is_printed_reads_back_equal() {
        for named in RECIPES {
            let text = named.to_toml().unwrap();
            let recipe = named.recipe().unwrap();
            assert_eq!(Recipe::from_toml(&text, named.name).unwrap(), recipe, "{text}");
            assert!(text.starts_with("# ") && text.contains("# Source: "), "{text}");
        }
        let text = Named::get("semask-l-cityscapes").unwrap().to_toml().unwrap();
        assert!(text.contains("# Published mIoU: 78.53, several scales and mirrored 80.39\n"));
        // A recipe of one's own may keep the table.
        let own = Recipe::from_toml("[about]\ntitle = 3\nanything = true", "own").unwrap();
        assert_eq!(own, Recipe::default());
    }

    /// spec/training.md
    #[test]
    fn data_sets_differ_as_the_official_configurations_do() {
        let get = |size: &str, set: &str| Recipe::preset(&format!("semask-{size}-{set}")).unwrap();
        for size in ["t", "s", "b", "l"] {
            let (ade, coco) = (get(size, "ade20k"), get(size, "coco-stuff-10k"));
            let generic = Recipe::preset(&format!("semask-{size}")).unwrap();
            let mut named = ade.clone();
            (named.name, named.model.num_classes) = (generic.name.clone(), 0);
            named.data.format = Format::Auto;
            assert_eq!(named, generic);
            let side = if size == "l" { 640 } else { 512 };
            for recipe in [&ade, &coco] {
                assert_eq!(recipe.augment.crop_size, Some([side; 2]));
                assert_eq!(recipe.eval.resize, Some([4 * side, side]));
                let resize = recipe.augment.resize.as_ref().unwrap();
                assert_eq!((resize.long, resize.short), (4 * side, side));
                let list = vec![0.5, 0.75, 1.0, 1.25, 1.5, 1.75];
                assert_eq!(resize.ratios, Ratios::List(list));
                assert_eq!((recipe.optimizer.lr, recipe.optimizer.weight_decay), (1e-4, 1e-4));
                assert_eq!(recipe.data.batch_size, Some(16));
            }
            assert_eq!(ade.augment.cat_max_ratio, if size == "t" { 0.75 } else { 1.0 });
            assert_eq!(coco.augment.cat_max_ratio, 1.0);
            assert_eq!(ade.loss.ohem_min_kept, (size == "l").then_some(100_000));
            assert_eq!(coco.loss.ohem_min_kept, Some(100_000));
            assert_eq!((ade.model.num_classes, coco.model.num_classes), (150, 171));
            assert_eq!(coco.data.format, Format::CocoStuff10k);

            let city = get(size, "cityscapes");
            assert_eq!(city.augment.crop_size, Some([768; 2]));
            assert_eq!(city.augment.cat_max_ratio, 0.75);
            let ratios = &city.augment.resize.as_ref().unwrap().ratios;
            assert_eq!(*ratios, Ratios::Range { min: 0.5, max: 2.0 });
            assert_eq!(city.eval.resize, Some([2048, 1024]));
            assert_eq!((city.optimizer.lr, city.optimizer.weight_decay), (1e-3, 0.05));
            assert_eq!(city.schedule.warmup_ratio, if size == "b" { 1e-6 } else { 1e-5 });
            assert_eq!((city.data.batch_size, city.loss.ohem_min_kept), (Some(8), None));
            // The rule of the official code: 19 classes keep to windows.
            assert_eq!(city.model.semantic_windows(), [true; 4]);
            assert_eq!(ade.model.semantic_windows()[3], size == "b");
            for recipe in [&ade, &coco, &city] {
                assert_eq!((recipe.schedule.iterations, recipe.schedule.power), (80_000, 1.0));
                assert_eq!((recipe.eval.every, recipe.checkpoint.every), (8000, 8000));
                assert_eq!(recipe.model.drop_path_rate, 0.3);
            }
        }
    }

    /// spec/training.md
    #[test]
    fn heads_that_find_masks_train_as_the_official_configurations_do() {
        for (name, lr, decay, iterations, crop) in [
            ("maskformer-ade20k", 6e-5, 0.01, 160_000, [640, 640]),
            ("mask2former-ade20k", 1e-4, 0.05, 160_000, [640, 640]),
            ("fapn-ade20k", 1e-4, 0.05, 160_000, [640, 640]),
            ("msfapn-ade20k", 1e-4, 0.05, 160_000, [640, 640]),
            ("mask2former-cityscapes", 1e-4, 0.05, 90_000, [512, 1024]),
        ] {
            let recipe = Recipe::preset(&format!("semask-l-{name}")).unwrap();
            assert_eq!((recipe.optimizer.lr, recipe.optimizer.weight_decay), (lr, decay));
            assert_eq!((recipe.schedule.iterations, recipe.schedule.power), (iterations, 0.9));
            assert_eq!(recipe.schedule.warmup, if lr < 1e-4 { 1500 } else { 0 });
            assert_eq!(recipe.augment.crop_size, Some(crop));
            assert_eq!(
                (recipe.optimizer.clip_norm, recipe.data.batch_size),
                (Some(0.01), Some(16))
            );
            assert_eq!((recipe.loss.ohem_min_kept, recipe.model.drop_path_rate), (None, 0.3));
            let (windows, side) = match name {
                "mask2former-cityscapes" => ([true; 4], 7),
                "fapn-ade20k" | "msfapn-ade20k" => ([true, true, false, false], 12),
                _ => ([true, true, true, false], 12),
            };
            assert_eq!(recipe.model.semantic_windows(), windows, "{name}");
            assert_eq!(recipe.model.sem_window_size, side);

            // Norms and embeddings are spared, and nothing else.
            let model = Model::new(&recipe.model).unwrap();
            for (name, parameter) in model.parameters().trained() {
                let rank = parameter.tensor.dims().len();
                let spared = recipe.optimizer.weight_decay_of(name, rank) == 0.0;
                let norm = matches!(parameter.init, Init::Constant(1.0));
                let of_norm = name.strip_suffix(".bias").is_some_and(|layer| {
                    let weight = model.parameters().get(&format!("{layer}.weight"));
                    weight.is_some_and(|w| matches!(w.init, Init::Constant(1.0)))
                });
                let embedding = name.ends_with("relative_position_bias_table")
                    || name.starts_with("sem_seg_head.predictor.query_")
                    || name == "sem_seg_head.predictor.level_embed.weight";
                assert_eq!(spared, norm || of_norm || embedding, "{name}");
            }
        }
    }

    #[test]
    fn baselines_differ_by_their_semantic_layers_alone() {
        for named in RECIPES {
            let name = match named.name.split_once('-') {
                Some(("swin", rest)) => format!("semask-{rest}"),
                Some(("mit", rest)) => format!("semask-mit-{rest}"),
                _ => continue,
            };
            let mut baseline = named.recipe().unwrap();
            assert_eq!(baseline.model.num_sem_blocks, [0; 4]);
            let semask = Recipe::preset(&name).unwrap();
            baseline.name = name;
            baseline.model.num_sem_blocks = semask.model.num_sem_blocks.clone();
            assert_eq!(baseline, semask);
        }
    }
}
