"""Classifiers of images, and heads that tell how natural an image looks to them."""

from dipct.classifier.attributes import AttributeLogits as AttributeLogits
from dipct.classifier.centroids import CentroidHead as CentroidHead
from dipct.classifier.centroids import CentroidLogits as CentroidLogits
from dipct.classifier.centroids import averaged_features as averaged_features
from dipct.classifier.centroids import gradient_penalty as gradient_penalty
from dipct.classifier.centroids import kernel_loss as kernel_loss
from dipct.classifier.centroids import last_linear_input as last_linear_input
from dipct.classifier.centroids import with_centroids as with_centroids
from dipct.classifier.loss_estimator import LossEstimator as LossEstimator
from dipct.classifier.loss_estimator import ranking_loss as ranking_loss
from dipct.classifier.own_model import load_model as load_model
from dipct.classifier.resnet import STAGES as STAGES
from dipct.classifier.resnet import TRUNK as TRUNK
from dipct.classifier.resnet import ResNet as ResNet
from dipct.classifier.resnet import halved_resnet as halved_resnet
from dipct.classifier.resnet import resnet18 as resnet18
from dipct.classifier.resnet import small_resnet as small_resnet
