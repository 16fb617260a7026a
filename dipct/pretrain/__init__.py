"""Supervised training: of generators on pairs, of classifiers on labels."""

from dipct.pretrain.celeba import list_celeba as list_celeba
from dipct.pretrain.centroid_training import CentroidTraining as CentroidTraining
from dipct.pretrain.centroid_training import CentroidTrainingSettings as CentroidTrainingSettings
from dipct.pretrain.classifier_discrepancy import Discrepancy as Discrepancy
from dipct.pretrain.classifier_discrepancy import OverSeeds as OverSeeds
from dipct.pretrain.classifier_discrepancy import classifier_discrepancy as classifier_discrepancy
from dipct.pretrain.classifier_report import CentroidReport as CentroidReport
from dipct.pretrain.classifier_report import HeadReport as HeadReport
from dipct.pretrain.classifier_report import report_centroids as report_centroids
from dipct.pretrain.classifier_report import report_head as report_head
from dipct.pretrain.classifier_report import shifted_images as shifted_images
from dipct.pretrain.classifier_training import ClassifierTraining as ClassifierTraining
from dipct.pretrain.classifier_training import (
    ClassifierTrainingSettings as ClassifierTrainingSettings,
)
from dipct.pretrain.ham10000 import list_ham10000 as list_ham10000
from dipct.pretrain.images import FolderImages as FolderImages
from dipct.pretrain.images import PhantomImages as PhantomImages
from dipct.pretrain.images import TrainingImages as TrainingImages
from dipct.pretrain.labelled_batches import LabelledTrainingSettings as LabelledTrainingSettings
from dipct.pretrain.labelled_folders import LAYOUTS as LAYOUTS
from dipct.pretrain.labelled_folders import find_layout as find_layout
from dipct.pretrain.labelled_folders import list_class_folders as list_class_folders
from dipct.pretrain.labelled_folders import read_labelled as read_labelled
from dipct.pretrain.labelled_images import LabelledImages as LabelledImages
from dipct.pretrain.listed_images import ListedImages as ListedImages
from dipct.pretrain.pairs import Pair as Pair
from dipct.pretrain.pairs import PairSettings as PairSettings
from dipct.pretrain.pairs import TrainingPairs as TrainingPairs
from dipct.pretrain.pretrained_network import PretrainedNetwork as PretrainedNetwork
from dipct.pretrain.pretrained_network import (
    read_pretrained_network as read_pretrained_network,
)
from dipct.pretrain.pretrained_network import (
    write_pretrained_network as write_pretrained_network,
)
from dipct.pretrain.scanned_scenes import ScannedScenes as ScannedScenes
from dipct.pretrain.scanned_scenes import SceneGeometry as SceneGeometry
from dipct.pretrain.scanned_scenes import scan_scenes as scan_scenes
from dipct.pretrain.scene_gate import SceneGate as SceneGate
from dipct.pretrain.scene_gate import scene_gate as scene_gate
from dipct.pretrain.scene_images import scene_images as scene_images
from dipct.pretrain.seeds import FOLDS as FOLDS
from dipct.pretrain.seeds import Fold as Fold
from dipct.pretrain.snapshots import Snapshots as Snapshots
from dipct.pretrain.spectrum import NetworkSpectrum as NetworkSpectrum
from dipct.pretrain.spectrum import SpectrumSettings as SpectrumSettings
from dipct.pretrain.spectrum import network_spectra as network_spectra
from dipct.pretrain.trained_classifier import ARCHITECTURES as ARCHITECTURES
from dipct.pretrain.trained_classifier import TrainedClassifier as TrainedClassifier
from dipct.pretrain.trained_classifier import make_classifier as make_classifier
from dipct.pretrain.trained_classifier import make_loss_estimator as make_loss_estimator
from dipct.pretrain.trained_classifier import (
    read_trained_classifier as read_trained_classifier,
)
from dipct.pretrain.trained_classifier import (
    write_trained_classifier as write_trained_classifier,
)
from dipct.pretrain.training import SupervisedTraining as SupervisedTraining
from dipct.pretrain.training import TrainingSettings as TrainingSettings
