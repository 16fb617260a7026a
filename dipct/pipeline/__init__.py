"""The verbs: simulate, pretrain, choose, reconstruct, quantify, spectrum, counterfactual ..."""

from dipct.pipeline.attributes import attribute_targets as attribute_targets
from dipct.pipeline.choose_network import choose_network as choose_network
from dipct.pipeline.counterfactual import counterfactual as counterfactual
from dipct.pipeline.counterfactual_problem import OtherClassifier as OtherClassifier
from dipct.pipeline.deep_image_prior import generator_of as generator_of
from dipct.pipeline.inversion_uncertainty import generator_of_inversion as generator_of_inversion
from dipct.pipeline.inversion_uncertainty import quantify_inversion as quantify_inversion
from dipct.pipeline.labelled import open_labelled as open_labelled
from dipct.pipeline.labelled import task_of as task_of
from dipct.pipeline.open_classifier import open_classifier as open_classifier
from dipct.pipeline.post_hoc import post_hoc_settings as post_hoc_settings
from dipct.pipeline.post_hoc import train_loss_estimator as train_loss_estimator
from dipct.pipeline.pre_image import pre_image as pre_image
from dipct.pipeline.prepare import open_scan as open_scan
from dipct.pipeline.pretrain import pretrain as pretrain
from dipct.pipeline.query import Query as Query
from dipct.pipeline.query import explain_query as explain_query
from dipct.pipeline.query import open_query as open_query
from dipct.pipeline.reconstruct import reconstruct as reconstruct
from dipct.pipeline.scan_measurement import measurement_of as measurement_of
from dipct.pipeline.simulate import example_scan as example_scan
from dipct.pipeline.simulate import simulate as simulate
from dipct.pipeline.spectrum import network_spectra_of as network_spectra_of
from dipct.pipeline.train_classifier import train_classifier as train_classifier
from dipct.pipeline.training import remove_checkpoint as remove_checkpoint
from dipct.pipeline.uncertainty import quantify as quantify
